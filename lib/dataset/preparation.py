"""A folder of photos -> a checked, cropped, captioned data set.

    photos = scan("photos")
    entries = plan(photos, read_subject("photos"))      # plain dicts, to edit
    dataset = prepare("photos", "runs/mine/data", "toy", "zwx", edits=entries)

What comes out is in the Hugging Face imagefolder form (`lib/dataset/imagefolder.py`).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config import bucket
from lib.config.picture_sizes import ASPECTS, trimmed
from lib.dataset.captions import (
    Subject,
    check_caption,
    composed,
    prompts,
    read_subject,
    with_identifier,
)
from lib.dataset.class_images import CLASS_IMAGES, draw_class_images
from lib.dataset.folder_scan import Photo, Photos, scan
from lib.dataset.imagefolder import (
    FORMAT,
    VERSION,
    Dataset,
    NewPicture,
    check_output,
    load_dataset,
    write_record,
    write_split,
)
from lib.dataset.photo_file import SMALLEST, crop_photo
from lib.files import BadInput, listed, printable, read_json, say, whole_folder
from lib.files.whole_writes import unwritable_refused

if TYPE_CHECKING:
    from lib.models import Base

USED_AS = {"train": "trained on", "test": "held out", "out": "left out"}

# Rare words that can stand for a subject.
IDENTIFIERS = ("zwx", "qzj", "vqx", "sks", "ohwx", "xyq")

Entry = dict[str, Any]  # one photo of a plan


@dataclass(frozen=True)
class PreparationOptions:
    """How photos become pictures. Raises `BadInput` for a value that cannot be used.

    - resolution: side of the pictures in pixels
    - held_out: photos to hold out, drawn by `seed`, where the subject names none
    - aspect: "square", or "photo" to keep each crop's aspect, nearly, at as many pixels
      (`lib/config/picture_sizes.py`)
    """

    resolution: int = 64
    held_out: int = 2
    seed: int = 0
    aspect: str = "square"

    def __post_init__(self) -> None:
        limits = {"resolution": (32, 2048), "held_out": (0, 1000), "seed": (0, 2**63)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise BadInput(f"{name} is {value!r}; give a whole number from {low} to {high}")
        if self.aspect not in ASPECTS:
            raise BadInput(f"aspect is {self.aspect!r}; choose {' or '.join(ASPECTS)}")
        if self.resolution % 8:
            raise BadInput(
                f"resolution is {self.resolution}; give a multiple of 8, such as"
                f" {max(32, self.resolution // 8 * 8)}"
            )


def plan(photos: Photos, subject: Subject, held_out: int = 2, seed: int = 0) -> list[Entry]:
    """What to do with each photo of `scan`: plain dicts to edit and hand to `prepare(edits=...)`.

    - file: the photo's name; width, height: of the upright photo, in pixels
    - use: "train", "test" (held out) or "out"
    - crop: [left, top, right, bottom] in those pixels
    - caption: the subject's own, else what a file beside the photo says, with the identifier, else
      the prompt of the subject
    - repeats: how often it comes where another comes once
    - findings: what was found about the photo

    Held out are the photos that the subject names; without those, `held_out` photos drawn by
    `seed`, but three different ones are always left to train on, so 2 from five on, 1 of four, none
    of three. Raises `BadInput` when the subject names files that are not there or cannot be used.
    """
    _check_named(photos, subject)
    chosen = _held_out_groups(photos, subject, held_out, seed)
    captions = {composed(name): text for name, text in subject.captions.items()}
    copies = {composed(p.path.name): composed(p.copy_of) for p in photos if p.copy_of}
    captions = {copies.get(name, name): text for name, text in captions.items()} | captions
    entries = []
    for photo in photos:
        findings = [photo.error] if photo.error else list(photo.findings)
        name = composed(photo.path.name)
        caption = captions.get(name, prompts(subject))
        if photo.caption and not (photo.error or photo.copy_of) and name not in captions:
            own = check_caption(photo.name, photo.caption)
            caption = check_caption(photo.name, with_identifier(subject, own))
            told = "" if caption == own else f", with the identifier {subject.identifier!r}"
            findings.append(f"has the caption of {printable(photo.caption_from)}{told}")
        use = "test" if photo.group in chosen else "train"
        entries.append(
            {
                "file": photo.path.name,
                "use": "out" if photo.error or photo.copy_of else use,
                "crop": list(photo.crop),
                "width": photo.width,
                "height": photo.height,
                "caption": caption,
                "repeats": 1,
                "findings": findings,
            }
        )
    return entries


def _check_named(photos: Photos, subject: Subject) -> None:
    """Raise `BadInput` if the subject names a photo that is not there or holds out a broken one."""
    by_name = {composed(photo.path.name): photo for photo in photos}
    for where, names in (("held_out", subject.held_out), ("captions", subject.captions)):
        for name in names:
            photo = by_name.get(composed(name))
            if photo is None:
                raise BadInput(
                    f"subject.json names {name!r} in {where}, but the folder has no such photo;"
                    " correct the name or take it out"
                )
            if where == "held_out" and photo.error:
                raise BadInput(f"held-out photo {name}: {photo.error}")


def _held_out_groups(photos: Photos, subject: Subject, held_out: int, seed: int) -> set[int]:
    """The groups of photos (of the same picture) to hold out."""
    if subject.held_out and held_out:
        named = {composed(name) for name in subject.held_out}
        return {photo.group for photo in photos if composed(photo.path.name) in named}
    usable = [photo for photo in photos if not photo.error and not photo.copy_of]
    counts = Counter(photo.group for photo in usable)
    first = {photo.group: f"{seed} {photo.sha256}" for photo in reversed(usable)}

    # By content, so that neither renaming a photo nor another version of Python changes the choice;
    # lone pictures before twins.
    def order(group: int) -> tuple[int, str]:
        return counts[group], hashlib.sha256(first[group].encode()).hexdigest()

    return set(sorted(counts, key=order)[: max(0, min(held_out, len(counts) - 3))])


def prepare(
    folder: str | Path,
    output: str | Path,
    class_noun: str | None = None,
    identifier: str | None = None,
    kind: str | None = None,
    edits: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Dataset:
    """Check, crop and caption the photos in `folder` and write the data set to `output`.

    - class_noun, identifier, kind (one of `KINDS`): from the folder's `subject.json` where they are
      not given
    - edits: a changed `plan`, or only its changed entries (`file` and what differs)
    - options: those of `PreparationOptions`

    The photos are only read. `output` is written whole or not at all and replaces nothing but an
    earlier data set of this function; the same inputs give the same bytes. Raises `BadInput` before
    anything is written: bad words or settings first, then bad photos.
    """
    subject = read_subject(folder, kind, class_noun, identifier)
    how = PreparationOptions(**options)
    folder, output = Path(folder).expanduser().resolve(), Path(output).expanduser().resolve()
    check_output(folder, output)
    photos = scan(folder, how.resolution, subject.kind, how.aspect)
    entries = plan(photos, subject, how.held_out, how.seed)
    _apply(edits or (), entries, how.aspect, subject.identifier)
    _check_plan(folder, photos, entries)
    _reduce_repeats(entries)
    record = {
        "format": FORMAT,
        "version": VERSION,
        # What goes by file name is recorded by picture.
        "subject": {k: v for k, v in asdict(subject).items() if k not in ("held_out", "captions")},
        "resolution": how.resolution,
        "notes": _notes(photos, entries, how.resolution),
        "photos": [
            {key: entry[key] for key in ("file", "use", "crop", "caption")}
            | {"sha256": photo.sha256}
            for photo, entry in zip(photos, entries)
        ],
        "files": {},
    }
    with unwritable_refused(output), whole_folder(output) as temporary:
        for split in ("train", "test"):
            chosen = [entry for entry in entries if entry["use"] == split]
            if chosen:
                pictures = [_new_picture(folder, entry, how) for entry in chosen]
                record["files"] |= write_split(temporary, split, pictures)
        write_record(temporary, record)
    return load_dataset(output)


def _reduce_repeats(entries: list[Entry]) -> None:
    """Divide the repeats by what they have in common: they weigh photos against each other."""
    common = math.gcd(*(entry["repeats"] for entry in entries if entry["use"] == "train"))
    for entry in entries:
        entry["repeats"] = entry["repeats"] // common if entry["use"] == "train" else 1


def _new_picture(folder: Path, entry: Entry, how: PreparationOptions) -> NewPicture:
    """The picture that a photo's crop becomes, made when it is written."""
    crop, size = entry["crop"], (how.resolution, how.resolution)
    metadata = {"repeats": entry["repeats"]} if entry["repeats"] > 1 else {}
    if how.aspect == "photo":
        left, top, right, bottom = crop = trimmed(crop, how.resolution)
        size = bucket((right - left, bottom - top), how.resolution)
        scale = size[0] / (right - left)
        corner = [round(top * scale), round(left * scale)]
        metadata["shown"] = [entry["height"], entry["width"], *corner]  # see `Item`
    return NewPicture(
        lambda: crop_photo(folder / entry["file"], crop, size), entry["caption"], metadata
    )


def read_words(
    subject: str | Path, base: "Base", class_noun: str = "", identifier: str = "", kind: str = ""
) -> Subject:
    """The `Subject` in the photo folder `subject`, its words checked against a base's tokenizer.

    The words given here come first, then those of its subject.json, then of `IDENTIFIERS` the one
    that the tokenizer keeps in fewest tokens: a rare word, short to learn.
    """
    own = Path(subject).expanduser() / "subject.json"
    if not identifier and not (own.is_file() and read_json(own).get("identifier")):
        identifier = min(IDENTIFIERS, key=lambda word: len(base.tokens(word)))
    found = read_subject(subject, kind or None, class_noun or None, identifier or None)
    base.check_words(found.class_noun, found.identifier)
    return found


def prepare_all(
    folder: str | Path,
    output: str | Path,
    base: "Base",
    subject: Subject,
    drawing: Mapping[str, Any],
    **options: Any,
) -> Dataset:
    """A data set with class images from the photos in `folder`, as notebook 01 makes it.

    `drawing`: what `draw_class_images` is told (count, seed, progress, steps, guidance); `options`:
    those of `PreparationOptions` but for the resolution, which is the base's. Raises `BadInput` as
    `prepare` does, and for a caption that `base` does not read to its identifier.
    """
    words = subject.class_noun, subject.identifier, subject.kind
    dataset = prepare(folder, output, *words, resolution=base.resolution, **options)
    used = {printable(p["file"]): p["caption"] for p in dataset.photos if p["use"] != "out"}
    base.check_captions(used, subject.identifier)
    return draw_class_images(base, dataset, **drawing)


def uses(dataset: Dataset) -> Iterator[str]:
    """What became of each photo, and why not, a line each: "a.jpg: trained on as 'a zwx toy'"."""
    for photo in dataset.photos:
        begins, out = f"{printable(photo['file'])}: ", photo["use"] == "out"
        notes = (said.removeprefix(begins) for said in dataset.notes if said.startswith(begins))
        told = "; ".join(["", *notes]) if out else f" as {photo['caption']!r}"
        yield f"{begins}{USED_AS[photo['use']]}{told}"


def open_or_prepare(
    folder: str | Path,
    base: "Base",
    subject: str | Path,
    class_noun: str = "",
    identifier: str = "",
    kind: str = "",
    seed: int = 0,
    count: int = CLASS_IMAGES,
    **sampling: Any,
) -> Dataset:
    """The data set in `folder`, as notebook 01 left it, or else one made as notebook 01 does.

    That is made from the photos in `subject`. `count` and `sampling` (steps, guidance) are for its
    class images. Raises `BadInput` if its pictures are not of the size that `base` draws, and as
    `prepare` does.
    """
    if (Path(folder) / "dataset.json").is_file():
        dataset = load_dataset(folder)
    else:
        say(f"no data set in {folder} yet: preparing {subject} as notebook 01 does")
        words = read_words(subject, base, class_noun, identifier, kind)
        drawing = {"count": count, "seed": seed} | sampling
        dataset = prepare_all(subject, folder, base, words, drawing, seed=seed)
    if dataset.resolution != base.resolution:
        raise BadInput(
            f"Data set {folder} has pictures of {dataset.resolution} pixels and base '{base.name}'"
            f" draws {base.resolution}: prepare it again with notebook 01 and this base, or choose"
            " another output folder."
        )
    return dataset


def _apply(
    edits: Sequence[Mapping[str, Any]], entries: list[Entry], aspect: str, identifier: str
) -> None:
    """Change the entries of a plan as a user wants. Raises `BadInput` for what cannot be done."""
    by_name = {entry["file"]: entry for entry in entries}
    for edit in edits:
        name = edit.get("file") if isinstance(edit, dict) else None
        if name is None or name not in by_name:
            raise BadInput(
                f"the plan has no photo {name!r}; give each edit as a dict with the 'file' of a"
                " photo in the folder"
            )
        entry, shown = by_name[name], printable(name)
        if unknown := sorted(set(edit) - set(entry)):
            raise BadInput(
                f"plan of {shown}: unknown key {unknown[0]!r}; use file, use, crop, caption and"
                " repeats"
            )
        use = edit.get("use", entry["use"])
        if use not in USED_AS:
            raise BadInput(f"plan of {shown}: use is {use!r}; choose train, test or out")
        if use != "out":
            if not entry["width"]:
                raise BadInput(f"{shown}: {entry['findings'][0]}")
            entry["caption"] = check_caption(
                shown, edit.get("caption", entry["caption"]), identifier
            )
            entry["repeats"] = _check_repeats(shown, edit.get("repeats", entry["repeats"]))
            entry["crop"] = _check_crop(shown, edit.get("crop", entry["crop"]), entry, aspect)
        entry["use"] = use


def _check_repeats(name: str, repeats: Any) -> int:
    """How often a photo comes. Raises `BadInput` if that is no number of times."""
    if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= 10_000:
        raise BadInput(
            f"plan of {name}: repeats is {repeats!r}; give a whole number from 1 to 10000"
        )
    return repeats


def _check_crop(name: str, crop: Any, photo: Entry, aspect: str) -> list[int]:
    """The crop in whole pixels. Raises `BadInput` if it is none within the photo, or too small."""
    width, height = photo["width"], photo["height"]
    try:
        left, top, right, bottom = (round(v) for v in crop)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"plan of {name}: crop is {crop!r}; give [left, top, right, bottom] in pixels"
        ) from error
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise BadInput(
            f"plan of {name}: crop {crop} is not within the photo's {width} x {height} pixels; move"
            " it inside"
        )
    square = aspect == "photo" or abs((right - left) - (bottom - top)) <= 1
    if not square or min(right - left, bottom - top) < SMALLEST:
        size, form = f"{right - left} x {bottom - top}", "square, " * (aspect == "square")
        raise BadInput(
            f"plan of {name}: crop {crop} is {size} pixels; make it {form}at least {SMALLEST} x"
            f" {SMALLEST}"
        )
    return [left, top, right, bottom]


def _check_plan(folder: Path, photos: Photos, entries: list[Entry]) -> None:
    """Raise `BadInput` when too little is left to train on, or a picture is on both sides.

    That is of the split: two photos that show the same picture must not be.
    """
    train = {photo.group for photo, entry in zip(photos, entries) if entry["use"] == "train"}
    if len(train) < 2:
        broken = [f"{photo.name} {photo.error}" for photo in photos if photo.error]
        more = f"; and {len(broken) - 1} more" if len(broken) > 1 else ""
        why = f" ({broken[0]}{more})" if broken else ""
        few = "no photo" if not train else "only one photo"
        raise BadInput(
            f"photo folder {folder} leaves {few} to train on{why}; a subject takes at least 2"
            " different photos, better 4 to 8"
        )
    side: dict[int, tuple[str, Photo]] = {}
    for photo, entry in zip(photos, entries):
        if entry["use"] == "out":
            continue
        use, other = side.setdefault(photo.group, (entry["use"], photo))
        if use != entry["use"]:
            raise BadInput(
                f"{other.name} is {USED_AS[use]} and {photo.name} is {USED_AS[entry['use']]}, but"
                " both show the same picture; put both on one side of the split, or leave one out"
            )


def _notes(photos: Photos, entries: list[Entry], resolution: int) -> list[str]:
    """What is said about a data set's photos, a sentence each."""
    notes = [f"{p.name}: {said}" for p, e in zip(photos, entries) for said in e["findings"]]
    for p, e in zip(photos, entries):
        wide, high = e["crop"][2] - e["crop"][0], e["crop"][3] - e["crop"][1]
        if e["use"] != "out" and wide * high < resolution**2 and list(p.crop) != e["crop"]:
            notes.append(
                f"{p.name}: the crop of {wide} x {high} pixels is enlarged to {resolution}; make it"
                " larger if you can"
            )
    test = [p.name for p, e in zip(photos, entries) if e["use"] == "test"]
    if test:
        notes.append(f"held out of training, to measure fidelity on: {listed(test)}")
    else:
        notes.append(
            "no photo is held out, so fidelity is measured on the photos trained on, which flatters"
            " it; give 4 photos or more"
        )
    return [*notes, *photos.findings]
