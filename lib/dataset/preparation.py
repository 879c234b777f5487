"""A folder of photos -> a checked, cropped, captioned data set in the Hugging Face imagefolder
form.
"""

import hashlib
import unicodedata
from pathlib import Path

from lib.config.picture_sizes import ASPECTS, bucket, trimmed
from lib.dataset.captions import as_dict, check_caption, prompts, read_subject
from lib.dataset.class_images import CLASS_IMAGES, draw_class_images
from lib.dataset.folder_scan import scan
from lib.dataset.imagefolder import (
    FORMAT,
    VERSION,
    check_output,
    load_dataset,
    write_record,
    write_split,
)
from lib.dataset.photo_file import SMALLEST, cut
from lib.files.errors import BadInput
from lib.files.text import listed, printable
from lib.files.whole_writes import written_whole

USES = {"train": "trained on", "test": "held out", "out": "left out"}


def plan(photos, subject, held_out=2, seed=0):
    """What to do with each photo of `scan`: a list of plain dicts to edit and hand to
    `prepare(edits=...)`.

    Keys: `file`; `use` "train", "test" (held out) or "out"; `crop` [left, top, right, bottom] in
    pixels of the upright photo of `width` x `height`; `caption`; `findings`. Held out are the
    photos that the subject names; without those, `held_out` photos drawn by `seed`, but three
    different ones are always left to train on, so 2 from five on, 1 of four, none of three. Raises
    `BadInput` when the subject names files that are not there or cannot be used.
    """
    groups, by_name = {}, {_same(p.path.name): p for p in photos}
    for photo in photos:
        if not photo.error and not photo.copy_of:
            groups.setdefault(photo.group, []).append(photo)
    for where, names in (("held_out", subject.held_out), ("captions", subject.captions)):
        for name in names:
            if _same(name) not in by_name:
                raise BadInput(
                    f"subject.json names {name!r} in {where}, but the folder has no such photo;"
                    " correct the name or take it out"
                )
            if where == "held_out" and by_name[_same(name)].error:
                raise BadInput(f"held-out photo {name}: {by_name[_same(name)].error}")
    if subject.held_out and held_out:
        chosen = {by_name[_same(name)].group for name in subject.held_out}
    else:
        # By content, so that neither renaming a photo nor another version of Python changes the
        # choice; lone pictures before twins.
        def order(group):
            return (
                len(groups[group]),
                hashlib.sha256(f"{seed} {groups[group][0].sha256}".encode()).hexdigest(),
            )

        chosen = set(sorted(groups, key=order)[: max(0, min(held_out, len(groups) - 3))])
    captions = {_same(name): text for name, text in subject.captions.items()}
    entries = []
    for p in photos:
        use = "out" if p.error or p.copy_of else "test" if p.group in chosen else "train"
        entries.append(
            {
                "file": p.path.name,
                "use": use,
                "crop": list(p.crop),
                "width": p.width,
                "height": p.height,
                "caption": captions.get(_same(p.path.name), prompts(subject)),
                "findings": [p.error] if p.error else list(p.findings),
            }
        )
    return entries


def prepare(
    folder,
    output,
    class_noun=None,
    identifier=None,
    resolution=64,
    kind=None,
    edits=None,
    held_out=2,
    seed=0,
    aspect="square",
):
    """Check, crop and caption the photos in `folder` and write the data set to `output`. Returns
    its `Dataset`.

    `class_noun`, `identifier` and `kind` (one of `KINDS`) come from the folder's `subject.json`
    where they are not given; `edits` is a changed `plan`, or only its changed entries (`file` and
    what differs). `resolution`: side of the pictures in pixels. `aspect`: "square", or "photo" to
    keep each crop's aspect, nearly, at as many pixels (`lib/config/picture_sizes.py`). The photos
    are only read. `output` is written whole or not at all and replaces nothing but an earlier data
    set of this function; the same inputs give the same bytes. Raises `BadInput` before anything is
    written: bad words or settings first, then bad photos.
    """
    subject = read_subject(folder, kind, class_noun, identifier)
    for name, value, low, high in (
        ("resolution", resolution, 32, 2048),
        ("held_out", held_out, 0, 1000),
        ("seed", seed, 0, 2**63),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadInput(f"{name} is {value!r}; give a whole number from {low} to {high}")
    if aspect not in ASPECTS:
        raise BadInput(f"aspect is {aspect!r}; choose {' or '.join(ASPECTS)}")
    if resolution % 8:
        raise BadInput(
            f"resolution is {resolution}; give a multiple of 8, such as"
            f" {max(32, resolution // 8 * 8)}"
        )
    folder, output = Path(folder).expanduser().resolve(), Path(output).expanduser().resolve()
    check_output(folder, output)
    photos = scan(folder, resolution, subject.kind, aspect)
    entries = _edited(plan(photos, subject, held_out, seed), edits or [], aspect)
    _check_plan(folder, photos, entries)
    notes = _notes(photos, entries, resolution)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "subject": as_dict(subject),
        "resolution": resolution,
        "notes": notes,
        "photos": [],
    }
    digests, written = {p.path.name: p.sha256 for p in photos}, {"train": [], "test": []}
    for e in entries:
        record["photos"].append(
            {key: e[key] for key in ("file", "use", "crop", "caption")}
            | {"sha256": digests[e["file"]]}
        )
        if e["use"] != "out":
            crop, size, shown = e["crop"], (resolution, resolution), {}
            if aspect == "photo":
                crop = trimmed(crop, resolution)
                size = bucket((crop[2] - crop[0], crop[3] - crop[1]), resolution)
                shown = {"shown": _shown(e, crop, size)}
            written[e["use"]].append(
                (
                    lambda e=e, crop=crop, size=size: cut(folder / e["file"], crop, size),
                    e["caption"],
                    shown,
                )
            )
    with written_whole(output) as temporary:
        record["files"] = {}
        for split, pictures in written.items():
            if pictures:
                record["files"] |= write_split(temporary, split, pictures)
        write_record(temporary, record)
    return load_dataset(output)


def _same(name):
    """File names as keys: macOS writes an accented letter as two characters, a JSON file mostly as
    one.
    """
    return unicodedata.normalize("NFC", name)


def _shown(entry, crop, size):
    """What `Item.shown` says of a crop that becomes a picture of `size`."""
    scale = size[0] / (crop[2] - crop[0])
    return [entry["height"], entry["width"], round(crop[1] * scale), round(crop[0] * scale)]


def _edited(entries, edits, aspect):
    """`entries` with the user's changes. Raises `BadInput` for what cannot be done."""
    by_name = {e["file"]: e for e in entries}
    for edit in edits:
        name = edit.get("file") if isinstance(edit, dict) else None
        if name not in by_name:
            raise BadInput(
                f"the plan has no photo {name!r}; give each edit as a dict with the 'file' of a"
                " photo in the folder"
            )
        entry, shown = by_name[name], printable(name)
        if unknown := sorted(set(edit) - set(entry)):
            raise BadInput(
                f"plan of {shown}: unknown key {unknown[0]!r}; use file, use, crop and caption"
            )
        use = edit.get("use", entry["use"])
        if use not in USES:
            raise BadInput(f"plan of {shown}: use is {use!r}; choose train, test or out")
        if use != "out":
            if not entry["width"]:
                raise BadInput(f"{shown}: {entry['findings'][0]}")
            entry["caption"] = check_caption(shown, edit.get("caption", entry["caption"]))
            entry["crop"] = _check_crop(
                shown, edit.get("crop", entry["crop"]), entry["width"], entry["height"], aspect
            )
        entry["use"] = use
    return entries


def _check_crop(name, crop, width, height, aspect):
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


def _check_plan(folder, photos, entries):
    """Raise `BadInput` when too little is left to train on, or the same picture stands on both
    sides of the split.
    """
    broken = [f"{p.name} {p.error}" for p in photos if p.error]
    train = {p.group for p, e in zip(photos, entries) if e["use"] == "train"}
    if len(train) < 2:
        why = (
            f" ({broken[0]}{f'; and {len(broken) - 1} more' if len(broken) > 1 else ''})"
            if broken
            else ""
        )
        few = "no photo" if not train else "only one photo"
        raise BadInput(
            f"photo folder {folder} leaves {few} to train on{why}; a subject takes at least 2"
            " different photos, better 4 to 8"
        )
    side = {}
    for p, e in zip(photos, entries):
        other = side.setdefault(p.group, (e["use"], p)) if e["use"] != "out" else (e["use"], p)
        if other[0] != e["use"]:
            raise BadInput(
                f"{other[1].name} is {USES[other[0]]} and {p.name} is {USES[e['use']]}, but both"
                " show the same picture; put both on one side of the split, or leave one out"
            )


def _notes(photos, entries, resolution):
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


def read_words(subject, base, class_noun="", identifier="", kind=""):
    """The `Subject` in the photo folder `subject`, with the words given here first, then its
    subject.json, then a proposed identifier.
    """
    from lib.dataset.captions import read_subject
    from lib.files.json_file import read_json

    own = Path(subject).expanduser() / "subject.json"
    named = own.is_file() and read_json(own).get("identifier")
    found = read_subject(
        subject, kind or None, class_noun or None, identifier or (None if named else propose(base))
    )
    base.check_words(found.class_noun, found.identifier)
    return found


def propose(base, candidates=("zwx", "qzj", "vqx", "sks", "ohwx", "xyq")):
    """The first of `candidates` that the tokenizer of `base` keeps in fewest pieces: a rare word,
    short to learn.
    """
    return min(candidates, key=lambda word: len(base.pieces(word)))


def data_set(
    folder,
    base,
    subject,
    class_noun="",
    identifier="",
    kind="",
    seed=0,
    count=CLASS_IMAGES,
    **sampling,
):
    """The data set in `folder`, as notebook 01 left it; where there is none, one made from the
    photos in `subject` just as 01 does.

    `count` and `sampling` (steps, guidance) are for its class images. Raises `BadInput` if its
    pictures are not of the size that `base` draws, and as `prepare` does.
    """
    from lib.dataset.imagefolder import load_dataset

    if (Path(folder) / "dataset.json").is_file():
        dataset = load_dataset(folder)
    else:
        print(
            f"[stage] no data set in {folder} yet: preparing {subject} as notebook 01 does",
            flush=True,
        )
        words = read_words(subject, base, class_noun, identifier, kind)
        dataset = prepare(
            subject,
            folder,
            words.class_noun,
            words.identifier,
            base.resolution,
            words.kind,
            seed=seed,
        )
        dataset = draw_class_images(base, dataset, count, seed, **sampling)
    if dataset.resolution != base.resolution:
        raise BadInput(
            f"Data set {folder} has pictures of {dataset.resolution} pixels and base '{base.name}'"
            f" draws {base.resolution}: prepare it again with notebook 01 and this base, or choose"
            " another output folder."
        )
    return dataset
