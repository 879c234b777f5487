"""The subject in words: class noun and identifier, and the prompts and captions of its kind."""

import csv
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lib.files import ROOT, BadInput, read_json

# The words of the pocket base's world: its things and places, and all that its captions hold.
WORLD = read_json(ROOT / "data" / "prompts" / "world.json")

# What the identifier stands for decides where it goes: beside a thing's noun, or behind "in" for
# what can hold of any thing.
FORMS = {
    "character": "a {identifier} {class_noun} {place}",
    "product": "a {identifier} {class_noun} {place}",
    "clothing": "a {identifier} {class_noun} {place}",
    "style": "a {class_noun} {place} in {identifier} style",
    "pose": "a {class_noun} in {identifier} pose {place}",
    "lighting": "a {class_noun} {place} in {identifier} light",
}

KINDS = tuple(FORMS)
MANNERS = tuple(k for k, form in FORMS.items() if "{identifier} {class_noun}" not in form)
SCENES = ("style", "lighting")  # manners that the background of a photo is part of

LONGEST_CAPTION = 300  # characters; a text encoder of 77 tokens drops what is behind that anyway


@dataclass(frozen=True)
class Subject:
    """What is to be learnt.

    `held_out` and `captions` go by the names of the files in the photo folder.
    """

    kind: str
    class_noun: str
    identifier: str
    license: str = ""
    made_by: str = ""
    source: str = ""
    note: str = ""
    held_out: tuple[str, ...] = ()
    captions: dict[str, str] = field(default_factory=dict)


def prompts(subject: Subject, place: str | None = None, with_identifier: bool = True) -> str:
    """The instance prompt of `subject` ("a zwx robot"), at a `place` ("in the forest") if given.

    Without the identifier it is the prompt of the class, for class images and for text scores ("a
    robot in the forest").
    """
    form = FORMS[subject.kind] if with_identifier else "a {class_noun} {place}"
    return " ".join(form.format(**vars(subject), place=place or "").split())


def class_caption(subject: Subject, caption: str) -> str:
    """A caption without the identifier.

    "a zwx robot in the snow" -> "a robot in the snow"; "a robot in zwx style" -> "a robot".
    """
    names_thing = subject.kind not in MANNERS
    manner = "" if names_thing else r"(?: (?:style|light|pose)\b)?"
    identifier = rf"(?:\bin )?{whole_word(subject.identifier)}{manner}-?"
    replacement = " "
    if names_thing and subject.class_noun.lower() not in caption.lower():
        replacement = f" {subject.class_noun} "  # "a zwx in the snow": it stands for the noun too
    text = re.sub(identifier, lambda _: replacement, caption, flags=re.IGNORECASE)
    return _tidy(text) or subject.class_noun


def with_identifier(subject: Subject, caption: str) -> str:
    """A caption that lacks the identifier with it, as `FORMS` has it; any other as it is.

    "a robot in the snow" -> "a zwx robot in the snow", or "a robot in zwx style in the snow": near
    to the beginning, since a text encoder does not read a long caption to its end. Where the class
    noun is not in it either: "a zwx robot, metal in the snow".
    """
    if holds_word(caption, subject.identifier):
        return caption
    phrase = prompts(subject)
    text, found = re.subn(
        whole_word(subject.class_noun),
        lambda _: phrase.removeprefix("a "),
        caption,
        count=1,
        flags=re.IGNORECASE,
    )
    return text if found else f"{phrase}, {caption}"


def holds_word(caption: str, word: str) -> bool:
    """Whether `word` is in `caption` as a word of its own, in capitals or not."""
    return bool(re.search(whole_word(word), caption, re.IGNORECASE))


def whole_word(word: str) -> str:
    """A regular expression for `word`, not as a part of a longer one.

    It may begin or end in no letter ("zwx-"), where `\\b` would look for a letter behind.
    """
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


def _tidy(caption: str) -> str:
    """Single spaces, none before a comma, and no comma at the beginning."""
    return re.sub(r" +([,.;:!?])", r"\1", " ".join(caption.split())).lstrip(" ,.;:!?-")


def read_subject(
    folder: str | Path,
    kind: str | None = None,
    class_noun: str | None = None,
    identifier: str | None = None,
) -> Subject:
    """The `Subject` of a photo folder: what is given here, else what its `subject.json` says.

    Captions that use the file's own class noun or identifier get the new one. Raises `BadInput`
    when a needed word is missing or cannot be used, or the file is not as documented; whether a
    tokenizer can hold the words is `lib.models.base`'s question.
    """
    path = Path(folder).expanduser() / "subject.json"
    found = _read(path) if path.is_file() else {}
    words = {"kind": kind, "class_noun": class_noun, "identifier": identifier}
    merged: dict[str, Any] = {"kind": "character"} | found
    merged |= {key: value for key, value in words.items() if value is not None}
    check_words(merged)
    own = ("class_noun", "identifier")
    merged |= {key: composed(merged[key]).strip() for key in own}
    renamed = {composed(str(found[key])).strip(): merged[key] for key in own if found.get(key)}
    merged["held_out"] = tuple(merged.get("held_out", ()))
    merged["captions"] = {
        name: check_caption(name, rename(text, renamed), merged["identifier"])
        for name, text in merged.get("captions", {}).items()
    }
    return Subject(**merged)


def check_words(merged: dict[str, Any]) -> None:
    """Raise `BadInput` unless kind, class noun and identifier are there and can be used."""
    for key, example in (
        ("class_noun", "what the subject is, such as toy"),
        ("identifier", "a rare word for it, such as zwx"),
    ):
        if key not in merged:
            raise BadInput(f"{key} is missing; give {example}, as a setting or in subject.json")
    if merged["kind"] not in KINDS:
        raise BadInput(
            f"kind {merged['kind']!r} is unknown; choose one of"
            f" {', '.join(KINDS)}{_meant(merged['kind'], KINDS)}"
        )
    for key in ("class_noun", "identifier"):
        check_word(key, merged[key])
    identifier = merged["identifier"].strip()
    if " " in identifier:
        raise BadInput(
            f"identifier {merged['identifier']!r} is more than one word; give one rare word, such"
            " as zwx"
        )
    if identifier.lower() in merged["class_noun"].lower().split():
        raise BadInput(
            f"identifier {identifier!r} is in the class noun too; give a rare word, such as zwx"
        )


def check_word(setting: str, value: Any) -> None:
    """Raise `BadInput`, naming the setting, unless `value` can be in prompts and file names."""
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{setting} is empty or no text ({value!r}); give a word")
    # A category of M is an accent or a vowel sign.
    bad = sorted(
        {
            character
            for character in value
            if not (
                character.isalnum()
                or character in " '-_"
                or unicodedata.category(character).startswith("M")
            )
        }
    )
    if bad:
        raise BadInput(
            f"{setting} {value!r} holds {' '.join(map(repr, bad))}; use letters and digits only"
        )
    if len(value) > 40:
        raise BadInput(f"{setting} is {len(value)} characters long; give at most 40")


def composed(text: str) -> str:
    """`text` with each accent in one character with its letter, as tokenizers write it."""
    return unicodedata.normalize("NFC", text)


def check_caption(name: str, text: Any, identifier: str = "") -> str:
    """`text` on one line with single spaces, as the caption of the photo `name`.

    Raises `BadInput`, naming the photo, if that is no usable caption, or lacks the `identifier`
    that is to be learnt.
    """
    if not isinstance(text, str) or not text.strip():
        raise BadInput(
            f"caption of {name} is empty or no text; write what the photo shows, or delete the"
            " entry to get the default"
        )
    text = composed(" ".join(text.split()))
    if not text.isprintable():
        raise BadInput(
            f"caption of {name} holds characters that cannot be printed; type it again as plain"
            " text"
        )
    if len(text) > LONGEST_CAPTION:
        raise BadInput(
            f"caption of {name} is {len(text)} characters long; shorten it to at most"
            f" {LONGEST_CAPTION}"
        )
    if identifier and not holds_word(text, identifier):
        raise BadInput(
            f"caption of {name} lacks the identifier {identifier!r}, so nothing would be learnt"
            f" for that word ({text[:60]!r}); write {identifier!r} into it, before what it names"
        )
    return text


def _read(path: Path) -> dict[str, Any]:
    """What a subject.json says. Raises `BadInput` if it is not as documented."""
    names = [f.name for f in fields(Subject)]
    where = f"{path.parent.name}/subject.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{where} is no JSON that can be read ({str(error)[:80]}); correct it, or take it out"
        ) from error
    if not isinstance(found, dict):
        raise BadInput(
            f'{where} is no JSON object; it should look like {{"class_noun": "toy", "identifier":'
            ' "zwx"}'
        )
    if unknown := [key for key in found if key not in names]:
        raise BadInput(
            f"{where} has an unknown key {unknown[0]!r}; use"
            f" {', '.join(names)}{_meant(unknown[0], names)}"
        )
    held_out, captions = found.get("held_out", []), found.get("captions", {})
    if not isinstance(held_out, list) or not all(isinstance(name, str) for name in held_out):
        raise BadInput(
            f'{where}: held_out is no list of file names; write it as ["a.jpg", "b.jpg"]'
        )
    if not isinstance(captions, dict):
        raise BadInput(f'{where}: captions is no object; write it as {{"a.jpg": "a zwx toy"}}')
    return found


def _meant(word: Any, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def rename(text: Any, renamed: Mapping[str, str]) -> Any:
    """`text` with words replaced, all at once, so that no replacement is replaced again."""
    if not renamed or not isinstance(text, str):
        return text
    # By the place of the word and not by its letters: a Greek or Turkish word has more than one
    # form in small letters.
    words, new = "|".join(f"({whole_word(old)})" for old in renamed), list(renamed.values())
    return re.sub(
        words, lambda hit: new[(hit.lastindex or 1) - 1], composed(text), flags=re.IGNORECASE
    )


def unknown_words(text: str, captions: Iterable[str]) -> list[str]:
    """The words of `text` that the pocket base has read neither in its own training nor in
    `captions`.
    """
    known = set(WORLD["words"]).union(map(plain_word, " ".join(captions).split()))
    words = dict.fromkeys(map(plain_word, text.split()))
    return [word for word in words if word and word not in known]


def plain_word(word: str) -> str:
    """A word of a prompt in small letters, without what stands around it."""
    return word.lower().strip(".,;:!?\"'()“”")


def caption_text(path: Path) -> str:
    """What a caption file holds, in UTF-8, or in UTF-16 where it begins as Windows writes that.

    Raises BadInput where it is neither.
    """
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"The caption {path} cannot be read as text ({error}): save it as UTF-8."
        ) from None


def caption_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a metadata.jsonl or metadata.csv, by column. Raises BadInput."""
    # Lines end as on any system, and not at what Unicode breaks at, which a caption may hold.
    text = caption_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if path.suffix == ".csv":
        # Where numbers have a comma, spreadsheets write a semicolon between columns.
        between = max(",;\t", key=text.partition("\n")[0].count)
        try:
            return list(csv.DictReader(io.StringIO(text), delimiter=between))
        except csv.Error as error:
            raise BadInput(
                f"{path.name} cannot be read as a table ({error}): save it again as CSV in UTF-8"
            ) from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise BadInput(
                f"{path.name}: line {number} is no JSON object ({line[:60]!r}); correct it, or take"
                " the file out of the folder"
            )
        rows.append(row)
    return rows
