"""The course's promise: a subject that no file of the project knows is learned by both methods, and
appears in places new to it.
"""

import foreign
import pytest

from lib.dataset.class_images import PLACES, draw_class_images
from lib.dataset.preparation import prepare
from lib.evaluation.fidelity import EvaluationPlan, evaluate, evaluation_prompts
from lib.evaluation.judge import load_judge
from lib.models.base import load_base
from lib.models.families import preset
from lib.step.run_weights import load_run
from lib.training.loop import train
from pocket.measure import read_scene
from pocket.places import PHRASES


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    """The owl's data set, and how alike the untouched base model draws it: DINO, 0.10 when this was
    written.
    """
    folder = tmp_path_factory.mktemp("owl")
    dataset = draw_class_images(
        load_base(), prepare(foreign.write(folder / "photos"), folder / "data")
    )
    judge = load_judge()
    # Nothing is read of what a class picture would tell.
    plan = EvaluationPlan(evaluation_prompts(dataset.subject), class_pictures=0)
    return dataset, judge, plan, evaluate(load_base(), dataset, judge, plan)["dino"]


@pytest.mark.slow
@pytest.mark.parametrize("method, changes", [("lora", {}), ("dreambooth", {"steps": 250})])
def test_an_owl_of_another_hand_is_learned_in_places_its_photos_do_not_show(
    method, changes, owl, tmp_path
):
    dataset, judge, plan, floor = owl
    assert not [item for item in dataset.train if any(place in item.caption for place in PLACES)]
    settings = preset(
        method, data=str(dataset.root), output=str(tmp_path / "run"), sample_every=0, **changes
    )
    tuned = load_run(train(settings), load_base())
    found = evaluate(tuned, dataset, judge, plan)
    asked = [place for place in PHRASES for _ in range(2)]
    seen = [scene["place"] for scene in read_scene(judge, found["images"])]
    there = sum(a == b for a, b in zip(asked, seen)) / len(asked)

    # Photos that name no place, of a subject unlike what the base draws: in its preset's 150 steps
    # DreamBooth gains .3 over the floor, in 300 it draws the owl in its photos' places
    # (docs/troubleshooting.md).
    assert found["dino"] > floor + 0.3, f"DINO {found['dino']:.3f} against the base's {floor:.3f}"
    assert there > 0.6, f"{there:.0%} of the pictures show the place that was asked for"
