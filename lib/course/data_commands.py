"""The commands of the command line that make data sets, from photos and from Kohya's folders.

Every command imports its room when it runs, so that help and a slip in an option answer at once.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from lib.files import say

if TYPE_CHECKING:
    from lib.dataset.imagefolder import Dataset

Out = Annotated[str, typer.Option("--out", help="where it goes")]
Source = Annotated[str, typer.Argument(help="a run, file or folder")]


def prepare(
    folder: Annotated[str, typer.Argument(help="the folder of photos, which stays as it is")],
    class_noun: Annotated[str, typer.Option(help="what the subject is, such as toy")] = "",
    identifier: Annotated[
        str, typer.Option(help="the rare word that will name it (default: one is proposed)")
    ] = "",
    kind: Annotated[
        str, typer.Option(help="character, product, clothing, style, pose or lighting")
    ] = "",
    base: Annotated[str, typer.Option(help="the base model, which draws the class")] = "pocket",
    out: Out = "runs/mine/data",
    aspect: Annotated[
        str, typer.Option(help="square, or photo: in the photos' aspects")
    ] = "square",
    held_out: Annotated[int, typer.Option(help="photos that are not trained on")] = 2,
    class_images: Annotated[int, typer.Option(help="pictures of the class to draw")] = 40,
    sample_steps: Annotated[
        int, typer.Option(help="sampling steps of each of these; 0: as many as the base needs")
    ] = 0,
    guidance: Annotated[
        float, typer.Option(help="guidance scale of these; 0: the base's own")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="where all randomness starts from")] = 0,
) -> None:
    """Prepare a data set from a folder of photos.

    As notebook 01 does, by the same code: it says what was found in each photo, cuts, captions and
    holds out, and lets the base draw the class images. The photos stay as they are. Words that are
    not given come from the folder's subject.json, captions from files beside the photos.

    \b
    python -m lib prepare my/photos --class-noun toy
    python -m lib prepare my/photos --class-noun toy --base path/to/model --out runs/toy/data
    """
    from lib.course.parameters import check_parameters
    from lib.course.set_up import tell_limits
    from lib.dataset.captions import read_subject
    from lib.dataset.folder_scan import report, scan
    from lib.dataset.preparation import IDENTIFIERS, prepare_all, read_words, uses
    from lib.models import load_base

    check_parameters(
        {
            "class_noun": class_noun,
            "identifier": identifier,
            "kind": kind,
            "subject": folder,
            "base": base,
            "aspect": aspect,
            "held_out": held_out,
            "class_images": class_images,
            "sample_steps": sample_steps,
            "guidance": guidance,
            "seed": seed,
        }
    )
    found = report(scan(folder, kind=kind or None, aspect=aspect))
    # Before a base is loaded, which may be slow: whether the words can be used at all.
    read_subject(folder, kind or None, class_noun or None, identifier or IDENTIFIERS[0])
    print(found)
    model = load_base(base)
    subject = read_words(folder, model, class_noun, identifier, kind)
    drawing = {
        "count": class_images,
        "seed": seed,
        "progress": lambda done, total: say(f"class image {done} of {total}"),
        "steps": sample_steps,
        "guidance": guidance,
    }
    dataset = prepare_all(
        folder, out, model, subject, drawing, held_out=held_out, seed=seed, aspect=aspect
    )
    tell_limits(model, subject)
    print(
        *(note for note in dataset.notes if note.split(": ", 1)[-1] not in found),
        *uses(dataset),
        f"kind {subject.kind}, class noun {subject.class_noun}, identifier {subject.identifier}",
        _counts(dataset),
        f"written: {dataset.root}",
        sep="\n",
    )


def to_kohya(source: Source, out: Out) -> None:
    """Write a data set in the folders that Kohya's trainer reads.

    \b
    python -m lib to-kohya runs/course/data --out kohya
    """
    from lib.dataset.kohya_folders import to_kohya as write_folders

    print(f"written: {write_folders(source, out)}")


def from_kohya(
    source: Source,
    out: Out,
    resolution: Annotated[
        int, typer.Option(help="side of the pictures (default: the pocket base's 64)")
    ] = 64,
    aspect: Annotated[
        str, typer.Option(help="square, or photo: as the pictures are, in buckets")
    ] = "square",
) -> None:
    """Make a data set of Kohya's folders.

    \b
    python -m lib from-kohya kohya --out runs/mine/data
    """
    from lib.dataset.kohya_folders import from_kohya as read_folders
    from lib.dataset.preparation import uses

    dataset, notes = read_folders(source, out, resolution=resolution, aspect=aspect)
    print(
        *notes,
        *uses(dataset),
        _counts(dataset),
        f"written: {dataset.root}",
        sep="\n",
    )


def _counts(dataset: "Dataset") -> str:
    """How many pictures a data set has, in a line."""
    return (
        f"{len(dataset.train)} pictures to train on, {len(dataset.test)} held out,"
        f" {len(dataset.class_images)} of the class"
    )
