"""The one command line: `python -m lib --help` lists its commands.

Every command imports its room when it runs, so that help and a slip in an option answer at once.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lib.course import data_commands
from lib.course.data_commands import Out, Source
from lib.files import BadInput, printable
from lib.files.quiet import quieten

if TYPE_CHECKING:
    from lib.convert.readers import Written

app = typer.Typer(
    help="LoRA and DreamBooth side by side: the course, trainings, and files for other tools.",
    epilog="A command tells more of itself, with examples: python -m lib train --help",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)

Base = Annotated[
    str | None, typer.Option(help="the base model (default: the one that the source names)")
]
Title = Annotated[str | None, typer.Option(help="the name that tools show (default: the file's)")]
OtherBase = Annotated[
    bool, typer.Option("--other-base", help="use it on another base of the same family")
]
LoraForm = Annotated[str, typer.Option("--to", help="the form: kohya, diffusers or peft")]
ModelForm = Annotated[str, typer.Option("--to", help="the form: checkpoint or diffusers")]


@contextmanager
def ending(*failures: type[Exception], stopped: str = "Stopped.") -> Iterator[None]:
    """End a command with one sentence on standard error, where its room does not do so itself.

    The exit code is 1 after one of `failures`, and 130 after an interrupt, which `stopped` tells.
    """
    try:
        yield
    except failures as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def course(
    subject: Annotated[
        str | None,
        typer.Option(
            help="folder of photos, or an example in data/subjects (default: the notebooks' own)"
        ),
    ] = None,
    class_noun: Annotated[
        str | None, typer.Option(help="what kind of thing the subject is, such as toy")
    ] = None,
    identifier: Annotated[
        str | None, typer.Option(help="the rare word that will name it, such as zwx")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="base model: pocket, or a Stable Diffusion folder or name")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="training steps of each method")] = None,
    seed: Annotated[str | None, typer.Option(help="where all randomness starts from")] = None,
    output: Annotated[str, typer.Option(help="where everything goes")] = "runs/course",
) -> None:
    """Run notebooks 01 to 06 and write one report.

    Executed notebooks, report.html, summary.json and timings.json go to the output folder.

    \b
    python -m lib course                  # the example subject, as `make course` does
    python -m lib course --subject my/photos --class-noun toy --output runs/toy
    """
    from lib.course.runner import CourseFailed, run_course

    settings = {
        "subject": subject,
        "class_noun": class_noun,
        "identifier": identifier,
        "base": base,
        "steps": steps,
        "seed": seed,
    }
    stopped = f"Stopped; what was done until here is in {output}"
    with ending(CourseFailed, stopped=stopped):
        run_course(settings, output)


app.command()(data_commands.prepare)


@app.command()
def train(
    settings: Annotated[
        str, typer.Argument(help="a JSON file of settings, such as a run folder's")
    ] = "settings.json",
) -> None:
    """Train by a file of settings, or go on where it stopped.

    \b
    python -m lib train runs/course/lora/settings.json
    """
    from lib.config import Settings
    from lib.training import loop

    stopped = (
        "Stopped; the same command goes on from the last checkpoint, or begins anew where there"
        " was none."
    )
    with ending(loop.NotFinite, stopped=stopped):
        print(loop.train(Settings.load(settings)))


@app.command()
def forecast(
    base: Annotated[
        str,
        typer.Option(help="pocket, sd15, sd21, sdxl, or any base model on this machine"),
    ] = "sd15",
    method: Annotated[str, typer.Option(help="lora or dreambooth")] = "lora",
    resolution: Annotated[
        int | None, typer.Option(help="pixels a side; the base's own if not given")
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            help="the card to choose for: its GB, or a name such as T4; the one in this machine, or"
            " 8 GB, if not given"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="whose kernels are counted: cuda or cpu")] = "cuda",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="any setting, such as rank=32 or prior_weight=0; may be given several times",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, in bytes")] = False,
) -> None:
    """Forecast the peak memory of a training step.

    It runs the real step on fake tensors, before anything is downloaded, and says which recipe fits
    which card.

    \b
    python -m lib forecast --base sdxl --method dreambooth --resolution 1024
    python -m lib forecast --base sd15 --card 6 --set rank=32 --set prior_weight=0
    python -m lib forecast --base sd15 --set data=runs/mine/data  # for a data set's largest picture
    """
    from lib.memory.cards import print_forecast, settings_for

    with ending(OSError):  # such as a name that is too long for a file's
        settings = settings_for(base, method, resolution, changes or ())
        print_forecast(settings, card, device, as_json)


@app.command()
def export(
    source: Source,
    out: Out,
    to: Annotated[
        str,
        typer.Option("--to", help="the form: kohya, diffusers, peft or checkpoint"),
    ],
    base: Base = None,
    title: Title = None,
    other_base: OtherBase = False,
    step: Annotated[
        int | None, typer.Option(help="one of the steps that the run keeps (default: its last)")
    ] = None,
) -> None:
    """Write a run for other tools.

    The file is read back and its pictures are compared with the run's before it counts as written.

    \b
    python -m lib export runs/course/lora --to kohya --out robot.safetensors
        # for ComfyUI, WebUI and Forge; diffusers and peft are other forms
    python -m lib export runs/course/dreambooth --to checkpoint --out robot.safetensors
        # one file; diffusers is a folder
    """
    from lib.convert import exporting, interchange
    from lib.training.kept_steps import at_step

    source = source if step is None else str(at_step(source, step))
    done = interchange.export(source, to, out, base, title, other_base)
    print(*done.lines(), sep="\n")
    print(interchange.check_pictures(source, done.path, exporting.base_of(source, base)))
    _print_written(done)


@app.command("import")
def import_(
    source: Source,
    out: Out,
    base: Base = None,
    data: Annotated[str | None, typer.Option(help="a data set to judge it by")] = None,
    other_base: OtherBase = False,
    rank: Annotated[
        int | None, typer.Option(help="of a LoHa or LoKr alone: the LoRA's that it is cut to")
    ] = None,
) -> None:
    """Make a run of somebody's LoRA.

    What takes a run takes it then: drawing, judging, combining, merging.

    \b
    python -m lib import theirs.safetensors --base pocket --out runs/theirs
    python -m lib import their_lokr.safetensors --base pocket --rank 32 --out runs/theirs
    """
    from lib.convert.interchange import import_lora

    print(f"a run: {import_lora(source, out, base, data, other_base, rank)}")


@app.command()
def merge(
    out: Out,
    to: ModelForm,
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="runs, files or folders; FILE=0.6 gives a weight; none: the bare base"),
    ] = None,
    base: Base = None,
    title: Title = None,
    other_base: OtherBase = False,
) -> None:
    """Write LoRAs into the weights of their base.

    Without any it writes the base that --base names as it is, such as a folder as one file.

    \b
    python -m lib merge runs/course/lora --to checkpoint --out robot.safetensors
    python -m lib merge runs/course/lora other.safetensors=0.6 \\
        --to checkpoint --out both.safetensors
    python -m lib merge --base path/to/folder --to checkpoint --out base.safetensors
    """
    from lib.convert import exporting, interchange, merging

    paths, weights = _with_weights(sources or [])
    model = merging.whole_model(paths, weights, base, other_base)
    done = merging.write_model(model, to, out, title)
    print(*done.lines(), sep="\n")
    if weights == [1.0]:
        base_name = exporting.base_of(paths[0], base)
        print(interchange.check_pictures(paths[0], done.path, base_name))
    _print_written(done)


@app.command()
def extract(
    source: Source,
    out: Out,
    to: LoraForm,
    rank: Annotated[int, typer.Option(help="directions a layer that are kept")] = 16,
    base: Base = None,
    title: Title = None,
    other_base: OtherBase = False,
) -> None:
    """Cut a LoRA out of a DreamBooth run.

    \b
    python -m lib extract runs/course/dreambooth --rank 16 --to kohya --out robot_r16.safetensors
    """
    from lib.convert import exporting, interchange

    exporting.check_output(to, out, exporting.ADAPTER_FORMS)  # before what takes minutes
    adapter, retained = interchange.extract(source, rank, base, other_base=other_base)
    done = exporting.export_lora(adapter, to, out, base, title, other_base)
    print(
        f"rank {rank} keeps {retained.of_layers:.1%} of the layers' change (sum of S^2),"
        f" {retained.of_all:.1%} of all weights'",
        *done.lines(),
        sep="\n",
    )
    _print_written(done)


@app.command()
def compose(
    sources: Annotated[
        list[str], typer.Argument(help="LoRAs: runs, files or folders; FILE=0.6 gives a weight")
    ],
    out: Out,
    to: LoraForm,
    how: Annotated[
        str,
        typer.Option(
            help="cat (the exact sum), linear, svd, ties_svd, dare_linear_svd or dare_ties_svd"
        ),
    ] = "cat",
    base: Base = None,
    title: Title = None,
) -> None:
    """Put several LoRAs of one base into one LoRA.

    \b
    python -m lib compose runs/course/lora data/adapters/lighting.safetensors=0.7 \\
        --to kohya --out both.safetensors
    """
    from lib.convert import exporting, interchange

    adapter = interchange.compose(*_with_weights(sources), how, base)
    done = exporting.export_lora(adapter, to, out, title=title)
    ranks = ", ".join(map(str, adapter.ranks))
    print(f"{adapter.source}: rank {ranks}", *done.lines(), sep="\n")
    _print_written(done)


@app.command()
def sweep(
    notebook: Annotated[str, typer.Argument(help="the notebook to run for each job")],
    lists: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE,...",
            help="values of a parameter; several make a grid",
        ),
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option(help="a JSON file with a list of jobs, each of which --set then varies"),
    ] = None,
    output: Annotated[str, typer.Option(help="where everything goes")] = "runs/sweep",
    workers: Annotated[
        str | None,
        typer.Option(
            help="how many notebooks run at once (default: 1; on a cluster, as it has room)"
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(help="run them on a Dask cluster: its scheduler's address, or local:4"),
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="run each as a job of Slurm")] = False,
    slurm_local: Annotated[
        bool, typer.Option("--slurm-local", help="try on this machine what --slurm does")
    ] = False,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition")] = None,
    time: Annotated[
        int | None, typer.Option(min=1, help="minutes that Slurm gives a job (default: 60)")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that Slurm gives a job")] = None,
) -> None:
    """Run a notebook over many settings.

    Finished jobs are skipped and failed ones tried again, so a sweep can be stopped and widened.

    \b
    python -m lib sweep notebooks/02_lora_training.ipynb \\
        --set rank=1,4,16 --set seed=0,1,2 --output runs/sweep --workers 2
    python -m lib sweep notebooks/02_lora_training.ipynb --set seed=0,1,2 --dask tcp://head:8786
    python -m lib sweep notebooks/02_lora_training.ipynb --set seed=0,1,2 \\
        --slurm --partition gpu --time 30 --gpus 1
    """
    from concurrent.futures import BrokenExecutor

    from lib.course.executors import Workers
    from lib.course.sweeping import JobsFailed, run_sweep

    stopped = f"Stopped; what is finished is in {output}, and the same command goes on from there."
    with ending(JobsFailed, BrokenExecutor, stopped=stopped):
        asked = Workers(workers, dask, slurm, slurm_local, partition, time, gpus)
        run_sweep(notebook, lists or [], jobs, output, asked)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="run folders, one of each method")],
) -> None:
    """Put finished runs side by side; trains nothing.

    One table, made from the same prompts and seeds for all, and one cautious sentence.

    \b
    python -m lib compare runs/course/lora runs/course/dreambooth
    """
    from lib.evaluation import comparison, comparison_table

    outcome = comparison.compare(runs, progress=print)
    print(comparison_table.table(outcome), comparison_table.verdict(outcome), sep="\n\n")


app.command()(data_commands.to_kohya)
app.command()(data_commands.from_kohya)


@app.command()
def card(source: Source, out: Out) -> None:
    """Write a model card.

    How the run was made, what was measured, and whose photos it learnt from.

    \b
    python -m lib card runs/course/lora --out card
    """
    from lib.convert import write_card

    print(f"written: {write_card(source, out)}")


def _print_written(done: "Written") -> None:
    """Say where a file or folder is, its size, and how long it took."""
    print(f"written: {done.path}, {done.bytes:,} bytes, in {done.seconds:.1f} s")


def _with_weights(sources: list[str]) -> tuple[list[str], list[float]]:
    """(["one", "two"], [1.0, 0.6]) of "one" and "two=0.6"."""
    paths, weights = [], []
    for source in sources:
        path, equals, number = source.rpartition("=")
        if not equals or Path(source).exists():
            path, number = source, "1"
        try:
            weights.append(float(number))
        except ValueError:
            raise BadInput(f"{source} does not end in a weight: write it as {path}=0.6.") from None
        paths.append(path)
    return paths, weights


def main(arguments: list[str] | None = None) -> int:
    """Run one command (by default that of `sys.argv`) and return the exit code.

    0, or 1 after one sentence on standard error, or 130 after an interrupt.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    quieten()
    # A terminal may lack a character, and a file's name may not be valid text.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return app(arguments or ["--help"], prog_name="python -m lib", standalone_mode=False) or 0
    except typer.TyperException as error:  # no such command or option, or a value of another kind
        said = " ".join(error.format_message().split())
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "python -m lib"
        said = f"{said.rstrip('.')}. See `{command} --help`."
    except typer.Abort:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        named = f" ({printable(error.filename)})" if error.filename else ""
        said = f"The system refused this{named}: {error.strerror or error}; check path and space."
    except RuntimeError as error:  # how Python says it of ~nobody, and of links in a circle
        if not str(error).startswith(("Could not determine home", "Symlink loop")):
            raise
        said = f"A path leads nowhere ({printable(str(error))}): write it whole, without links."
    except BadInput as error:
        said = str(error)
    print(said, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
