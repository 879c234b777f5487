"""What several tests share: a tiny, randomly initialised Stable Diffusion, and a small prepared
data set.
"""

import gc
import os
from pathlib import Path

os.environ.setdefault(
    "CUDA_VISIBLE_DEVICES", ""
)  # the tests are of the CPU's numbers; tests/step/test_cuda.py is of a card's

import pytest
import torch

pytest.register_assert_rewrite("whole_course")  # whose `check_run` asserts

# Threads decide the order of sums, and bits are compared here: they do not follow what else runs.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))

ROOT = Path(__file__).resolve().parent.parent
# Where the pocket base attends, at each place, to the start of the prompt alone.
LONE = "up_blocks.0.attentions.1.transformer_blocks.0.attn2"

# Tests of these share what takes minutes to make, and each of pytest-xdist's workers would make its
# own: all of a group go to one worker, the group with most tests first. (Its own `loadgroup` does
# nothing under pytest 9.2.)
TOGETHER = {
    "tests/course/test_whole_course.py": "course",
    "tests/test_golden.py::test_the_course_is_as_recorded": "course",
    "tests/test_golden.py": "golden",
    "tests/evaluation/test_foreign.py": "owl",
    "tests/evaluation/test_curve.py": "curves",
}


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Import what the tests import as `lib.models.pipeline` imports it: without torch's compiler,
    and without looking for garbage.
    """
    gc.disable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        collected = yield
    gc.freeze()
    gc.enable()
    return collected


@pytest.hookimpl(optionalhook=True)  # it is pytest-xdist's
def pytest_xdist_make_scheduler(config, log):
    """Each test goes to a worker that is free, but for those of `TOGETHER`."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            groups = (group for start, group in TOGETHER.items() if nodeid.startswith(start))
            return next(groups, nodeid)

    return Scheduling(config, log)


def write_tiny_base(folder, channels=(16, 32)):
    """A diffusers folder of the pocket base's classes at a size that trains in milliseconds, with
    random weights; of a U-Net of two levels, for most time goes by the number of its modules.
    """
    from transformers import CLIPTextModel

    from lib.models.pipeline import silence_libraries
    from pocket import clip, unet, vae

    silence_libraries()
    torch.manual_seed(0)
    tokenizer = clip.make_tokenizer()
    tower = CLIPTextModel(
        clip.make_clip(tokenizer, text_width=32, text_layers=1).config.text_config
    )
    parts = vae.make_vae((8, 16, 16), size=64), tower, tokenizer, unet.make_unet(32, channels)
    unet.make_pipeline(*parts).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a tiny base of the pocket base's classes."""
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """The example character as a prepared data set, with four class images."""
    from PIL import Image

    from lib.dataset.imagefolder import add_class_images
    from lib.dataset.preparation import prepare

    data = prepare(
        ROOT / "data" / "subjects" / "character", tmp_path_factory.mktemp("set") / "data"
    )
    return add_class_images(
        data, [Image.new("RGB", (64, 64), (40 * k, 90, 200)) for k in range(4)], ["a robot"] * 4
    )


@pytest.fixture
def make(tiny_folder, dataset, tmp_path):
    """Settings of a short training of the tiny base on that data set, with changes."""
    from lib.models.families import preset

    def make(method="lora", **changes):
        values = dict(
            base=tiny_folder,
            data=str(dataset.root),
            output=str(tmp_path / method),
            steps=6,
            batch_size=2,
            sample_every=0,
            learning_rate=1e-3,
        )
        return preset(method, **(values | changes))

    return make


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """The six notebooks, run once as tests/golden holds them, on one thread: a `WholeCourse`."""
    from test_golden import COURSE
    from whole_course import WholeCourse

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return WholeCourse(COURSE, tmp_path_factory.mktemp("course") / "out")


@pytest.fixture(scope="session")
def warm():
    """What starts warm Pythons for notebooks, in place of jupyter_client's own start."""
    from jupyter_client.provisioning import local_provisioner
    from warm_kernels import Warm

    warm = Warm(local_provisioner.launch_kernel)
    yield warm
    warm.close()


@pytest.fixture
def warm_kernels(warm, monkeypatch):
    """Notebooks that this test runs start on warm Pythons (tests/warm_kernels.py)."""
    start = "jupyter_client.provisioning.local_provisioner.launch_kernel"
    monkeypatch.setattr(start, warm.launch_kernel)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny("sd1") -> (folder, U-Net's config, CLIP's layers), each made once."""
    import scheme

    made = {}

    def tiny(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / family
            made[family] = (folder, *scheme.tiny_pipeline(family, folder))
        return made[family]

    return tiny
