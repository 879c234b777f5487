"""What every notebook begins with: the packages, errors in one sentence, and a data set to train on.

Only the standard library is imported here at first, so that `start` can install the rest on a machine (Colab) that lacks it.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .settings import BadInput

ROOT = Path(__file__).resolve().parent.parent
# What the notebooks import beside torch and numpy. For the first, files on disk depend on the version; of the rest any will do.
FLOORS, ANY = ("diffusers", "transformers", "peft", "accelerate", "safetensors"), ("pillow", "matplotlib", "ipywidgets", "psutil")
CLASS_IMAGES = 40


def start():
    """Make a notebook ready: install what is missing (never torch or numpy), and from then on show bad input as one sentence."""
    absent = unmet(ROOT / "requirements.txt")
    if absent:
        print(f"[stage] installing {', '.join(absent)}", flush=True)
        keep = [f"{name}=={version(name)}" for name in ("torch", "numpy")]  # named as they are, so that pip must leave them
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *absent, *keep], check=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from IPython import get_ipython
    except ImportError:
        return
    if get_ipython():
        get_ipython().set_custom_exc((BadInput,), _one_sentence)


def unmet(requirements):
    """The lines of a requirements file (floors, such as "peft>=0.18") that the notebooks need and that are not met here."""
    absent = []
    for line in Path(requirements).read_text("utf-8").splitlines():
        name, _, floor = line.split("#")[0].strip().partition(">=")
        if name in FLOORS + ANY:
            try:
                met = name in ANY or _numbers(version(name)) >= _numbers(floor)
            except PackageNotFoundError:
                met = False
            absent += [] if met else [f"{name}>={floor}"]
    return absent


def _numbers(text):
    """A version as numbers to compare: "5.6.0.dev1" -> [5, 6, 0]."""
    return [int(part) for part in re.match(r"\d+(\.\d+)*", text)[0].split(".")]


def _one_sentence(shell, kind, error, trace, tb_offset=None):
    """Show bad input as its sentence alone: it is the reader's setting that is wrong, not a line of code. The cell still fails."""
    shell._showtraceback(kind, error, [f"\x1b[1;31m{error}\x1b[0m"])


def read_words(subject, base, class_noun="", identifier="", kind=""):
    """The `Subject` in the photo folder `subject`, with the words given here first, then its subject.json, then a proposed identifier."""
    from .photos import read_subject
    from .settings import read_json

    own = Path(subject).expanduser() / "subject.json"
    named = own.is_file() and read_json(own).get("identifier")
    found = read_subject(subject, kind or None, class_noun or None, identifier or (None if named else propose(base)))
    base.check_words(found.class_noun, found.identifier)
    return found


def propose(base, candidates=("zwx", "qzj", "vqx", "sks", "ohwx", "xyq")):
    """The first of `candidates` that the tokenizer of `base` keeps in fewest pieces: a rare word, short to learn."""
    return min(candidates, key=lambda word: len(base.pieces(word)))


def class_prompts(dataset, count=CLASS_IMAGES):
    """`count` prompts for class images, without the identifier: four of the plain class, then one of another thing in one of `PLACES`.

    The plain class keeps the class noun what it was (Ruiz et al. 2022, section 3.2). Other things keep the looks of the places, which
    the photos' backgrounds would take over; with more of them a full fine-tune learns that in a place there is no subject. The class itself
    is shown in no place: that would teach places to hold the plain class.
    What a style or a light is laid over is told by the captions, so there they are the captions without it.
    """
    from .captions import class_caption
    from .fidelity import CLASSES, PLACES
    from .photos import prompts

    subject = dataset.subject
    if subject.kind in ("style", "lighting"):
        texts = sorted({class_caption(subject, item.caption) for item in dataset.train})
    else:
        plain, others = prompts(subject, with_identifier=False), [noun for noun in CLASSES if noun != subject.class_noun]
        elsewhere = [f"a {others[i % len(others)]} {PLACES[i % len(PLACES)]}" for i in range(len(PLACES) * len(others))]
        texts = [text for other in elsewhere for text in (plain,) * 4 + (other,)]
    return [texts[i % len(texts)] for i in range(count)]


def course_prompts(subject, base):
    """The short list of evaluation prompts for `subject` on `base`: pairs (with the identifier, with the class noun only)."""
    from .compare import protocol

    return protocol(subject, base, "course")


def draw_class_images(base, dataset, count=CLASS_IMAGES, seed=0, progress=None, **sampling):
    """Let the untouched base model draw the class images of a data set, and add them to it. Returns the new `Dataset`.

    They have the sizes of the photos, in proportion, since both train in one batch. `progress(done, total)` is called after each batch;
    `sampling` (steps, guidance) goes to `Base.generate`.
    """
    from .photos import add_class_images

    texts, seeds, images = class_prompts(dataset, count), [10_000 + seed * count + i for i in range(count)], []
    wanted = dataset.sizes
    sizes = [wanted[i * len(wanted) // count] for i in range(count)]
    for size in dict.fromkeys(sizes):
        start, end = len(images), len(images) + sizes.count(size)
        tell = progress and (lambda done, _, start=start: progress(start + done, count))
        images += base.generate(texts[start:end], seeds[start:end], progress=tell, size=size, **sampling)
    return add_class_images(dataset, images, texts)


def data_set(folder, base, subject, class_noun="", identifier="", kind="", seed=0, count=CLASS_IMAGES, **sampling):
    """The data set in `folder`, as notebook 01 left it; where there is none, one made from the photos in `subject` just as 01 does.

    `count` and `sampling` (steps, guidance) are for its class images. Raises `BadInput` if its pictures are not of the size that
    `base` draws, and as `prepare` does.
    """
    from .photos import load_dataset, prepare

    if (Path(folder) / "dataset.json").is_file():
        dataset = load_dataset(folder)
    else:
        print(f"[stage] no data set in {folder} yet: preparing {subject} as notebook 01 does", flush=True)
        words = read_words(subject, base, class_noun, identifier, kind)
        dataset = prepare(subject, folder, words.class_noun, words.identifier, base.resolution, words.kind, seed=seed)
        dataset = draw_class_images(base, dataset, count, seed, **sampling)
    if dataset.resolution != base.resolution:
        raise BadInput(f"Data set {folder} has pictures of {dataset.resolution} pixels and base '{base.name}' draws {base.resolution}: "
                       "prepare it again with notebook 01 and this base, or choose another output folder.")
    return dataset


def tell_limits(base, subject):
    """Print what a reader of their own photographs must know of the pocket base; nothing for the example subjects or another base.

    `subject` is the `Subject`; the examples are told by who made them.
    """
    if base.name == "pocket" and "pocket.subjects" not in subject.made_by:
        print("These are your own pictures, and the pocket base is a small model of drawings at 64 x 64 pixels. It can show whether "
              "colours, rough shape and markings of your subject are learnt and carried to new places, and how the two methods differ "
              "in time, memory and file size. It cannot show a photograph: no texture, no fine detail, no true light, and every place "
              "is a drawing. For photographs set `base` to a Stable Diffusion model; nothing else changes.")
