"""Format 2 of distilled sets: learned steps, centred labels, stored forms, recipes; and that format 1 is as it was."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import CENTRED, FORMAT, Decoder, DistilledSet, Steps
from dcbench_tesla.errors import CorruptFileError, DivergedError, UsageError
from dcbench_tesla.exchange import FORMATS, export_set, import_set
from dcbench_tesla.exchange.sets import Given
from dcbench_tesla.records.pictures import write_png
from dcbench_tesla.records.store import load_tensors, save_tensors

PLAIN = Preprocessing("standardise", torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.5]))
VALUES = torch.tensor([[0.5, -0.5], [0.3, -0.1], [-0.5, 0.5], [-0.7, 2.0]])
STEPS = Steps(torch.tensor([0.02, 0.01, 0.06]), torch.tensor([[0, 2], [1, 3], [0, 2]]))


def made(**changed: Any) -> DistilledSet:
    facts: dict[str, Any] = {
        "images": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 0, 1, 1]),
        "class_names": ("cat", "dog"),
        "preprocessing": PLAIN,
        "augmentation": "flip_crop",
        "provenance": {"method": "dm", "dataset": "toys", "ipc": 2, "seed": 0, "redistributable": True},
    }
    return DistilledSet(**{**facts, **changed})


NEW: dict[str, dict[str, Any]] = {
    "steps": {"steps": STEPS},
    "centred": {"labels": VALUES, "label_space": CENTRED},
    "steps to train": {"training_steps": 60},
    "decoder": {"decoder": Decoder(2)},
    "recipe": {"evaluation_recipe": "datm"},
    "all but a decoder": {
        "steps": STEPS,
        "labels": VALUES,
        "label_space": CENTRED,
        "evaluation_recipe": "a-recipe-of-tomorrow",
    },
}


def same(a: DistilledSet, b: DistilledSet) -> bool:
    (tensors, facts), (others, other_facts) = a.state(), b.state()
    return (
        facts == other_facts
        and tensors.keys() == others.keys()
        and all(torch.equal(tensors[name], others[name]) for name in tensors)
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_set_without_new_fields_has_the_bytes_of_format_1(tmp_path: Path) -> None:
    """The file as the first version wrote it, put together here from its parts."""
    whole = made(lr=0.0123)
    whole.save(tmp_path / "a" / "set.safetensors")
    tensors = {"images": whole.images, "labels": whole.labels}
    tensors |= {"preprocessing.mean": PLAIN.mean, "preprocessing.std": PLAIN.state()[0]["std"]}
    meta = {
        "format": FORMAT,
        "version": 1,
        "class_names": ["cat", "dog"],
        "augmentation": "flip_crop",
        "max_value": 255,
        "lr": 0.0123,
        "preprocessing": PLAIN.state()[1],
        "provenance": dict(whole.provenance),
    }
    save_tensors(tmp_path / "b" / "set.safetensors", tensors, meta)
    a, b = ((tmp_path / folder / "set.safetensors").read_bytes() for folder in "ab")
    assert hashlib.sha256(a).hexdigest() == hashlib.sha256(b).hexdigest()
    assert whole.version == 1


@pytest.mark.parametrize("embed", [True, False])
@pytest.mark.parametrize("name", NEW)
def test_format_2_comes_back_whole(name: str, embed: bool, tmp_path: Path) -> None:
    (tmp_path / "preprocessing").mkdir()
    path, distilled = tmp_path / "set.safetensors", made(**NEW[name])
    distilled.save(path, embed_preprocessing=embed)
    assert load_tensors(path)[1]["version"] == distilled.version == 2
    assert same(DistilledSet.load(path), distilled)


def hostile(path: Path, of: DistilledSet, **changed: Any) -> Path:
    tensors, meta = of.state()
    meta |= {"format": FORMAT, "version": 2}
    for name, value in changed.items():
        place: dict[str, Any] = tensors if isinstance(value, Tensor) or name.startswith("steps") else meta
        if value is ...:
            del place[name.replace("__", ".")]
        else:
            place[name.replace("__", ".")] = value
    save_tensors(path, tensors, meta)
    return path


RATES, BATCHES = STEPS.rates, STEPS.batches
WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"version": 3}, "in version 3 of the format; this dcbench knows 1 and 2"),
    ({}, {"version": "2"}, "in version '2'"),
    (NEW["steps"], {"version": 1}, r"steps\.rates stands in a file of version 1"),
    (NEW["centred"], {"version": 1}, "label_space stands in a file of version 1"),
    (NEW["centred"], {"training_steps": 0}, "training_steps is 0; expected a whole number of at least 1"),
    (NEW["centred"], {"training_steps": 2.5}, "training_steps is 2.5"),
    (NEW["centred"], {"label_space": "logits"}, "label_space is 'logits'; expected probabilities or centred"),
    (NEW["centred"], {"label_space": ["centred"]}, "label_space is"),
    (NEW["centred"], {"label_space": "probabilities"}, "labels of image 0 are no probabilities"),
    (NEW["centred"], {"labels": torch.tensor([0, 0, 1, 1])}, "label_space is centred, but the labels are classes"),
    (NEW["centred"], {"labels": torch.full((4, 2), math.nan)}, "labels hold NaN"),
    (NEW["steps"], {"steps__rates": ...}, r"steps\.rates is missing"),
    (NEW["steps"], {"steps__batches": ...}, r"steps\.batches is missing"),
    (NEW["steps"], {"steps__rates": RATES.double()}, r"steps\.rates are float64"),
    (NEW["steps"], {"steps__rates": RATES[:0]}, r"steps\.rates are float32 of shape \(0,\)"),
    (NEW["steps"], {"steps__rates": -RATES}, r"steps\.rates hold others; expected positive"),
    (NEW["steps"], {"steps__rates": RATES[:2]}, r"steps\.batches are int64 of shape \(3, 2\); expected int64 \(2, B\)"),
    (NEW["steps"], {"steps__batches": BATCHES[:, :0]}, r"steps\.batches are int64 of shape \(3, 0\)"),
    (NEW["steps"], {"steps__batches": BATCHES + 1}, r"steps\.batches lie in 1 \.\. 4; expected images 0 \.\. 3"),
    (NEW["steps"], {"steps__batches": BATCHES - 1}, r"steps\.batches lie in -1 \.\. 2"),
    (NEW["steps"], {"lr": 0.5}, r"lr is 0\.5; expected the mean of steps\.rates, 0\.03"),
    (NEW["steps"], {"lr": None}, "lr is None; expected the mean"),
    (NEW["steps"], {"decoder": {"name": "tiles", "factor": 2}}, "decoder stands beside learned steps"),
    (NEW["decoder"], {"decoder": {"name": "zoom", "factor": 2}}, "decoder is .*; expected the name tiles"),
    (NEW["decoder"], {"decoder": {"name": "tiles", "factor": 1}}, "with a factor from 2 to 16"),
    (NEW["decoder"], {"decoder": {"name": "tiles", "factor": True}}, "with a factor from 2 to 16"),
    (NEW["decoder"], {"decoder": {"name": "tiles", "factor": 10**30}}, "with a factor from 2 to 16"),
    (NEW["decoder"], {"decoder": {"name": "tiles", "factor": 9}}, "decoder cuts images of 8 pixels into 9 x 9"),
    (NEW["decoder"], {"decoder": {"name": "tiles", "factor": 2, "more": 1}}, "decoder is"),
    (NEW["decoder"], {"decoder": None}, "decoder is None"),
    (NEW["decoder"], {"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, "decoder stands beside pixels"),
    (NEW["recipe"], {"evaluation_recipe": "Datm!"}, "evaluation_recipe is 'Datm!'"),
    (NEW["recipe"], {"evaluation_recipe": ""}, "evaluation_recipe is ''"),
    (NEW["recipe"], {"evaluation_recipe": None}, "evaluation_recipe is None"),
]


@pytest.mark.parametrize(("of", "changed", "message"), WRONG, ids=[text for _, _, text in WRONG])
def test_a_wrong_field_is_named(of: dict[str, Any], changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = hostile(tmp_path / "set.safetensors", made(**of), **changed)
    with pytest.raises(CorruptFileError, match=message) as raised:
        DistilledSet.load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label_space": CENTRED}, "label_space is centred, but the labels are classes"),
        ({"label_space": "logits"}, "label_space is 'logits'"),
        ({"decoder": Decoder(1)}, "factor from 2 to 16"),
        ({"steps": Steps(RATES, BATCHES[:2])}, "a batch for every rate"),
        ({"steps": STEPS, "lr": 0.5}, "the mean of steps"),
        ({"evaluation_recipe": "a b"}, "a name of small letters"),
    ],
)
def test_a_method_cannot_make_a_wrong_one(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(**changed)


@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf])
def test_rates_that_diverged(rate: float) -> None:
    with pytest.raises(DivergedError, match="rate"):
        made(steps=Steps(torch.tensor([0.1, rate, 0.1]), BATCHES))


# ---- meaning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (8, 3), (7, 2), (8, 8), (28, 2)])
def test_decoding_against_a_plain_loop(side: int, factor: int) -> None:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    found = made(images=images, labels=torch.tensor([0, 1]), decoder=Decoder(factor)).decoded()
    tile = math.ceil(side / factor)
    expected = []
    for image in images:
        padded = torch.empty(3, factor * tile, factor * tile)
        for c in range(3):
            padded[c] = (0.5 - PLAIN.mean[c]) / PLAIN.state()[0]["std"][c]  # grey, as the networks see it
        padded[:, :side, :side] = image
        for row in range(factor):
            for column in range(factor):
                part = padded[:, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                expected.append(F.interpolate(part[None], size=(side, side), mode="bilinear")[0])
    torch.testing.assert_close(found.images, torch.stack(expected))
    assert found.labels.tolist() == [0] * factor**2 + [1] * factor**2
    assert (found.version, found.training_images) == (1, 2 * factor**2)


def test_the_plain_form_is_what_any_recipe_can_train_on() -> None:
    assert (whole := made()).plain() is whole
    centred = made(**NEW["all but a decoder"]).plain()
    assert centred.labels.tolist() == [0, 0, 1, 1]
    assert centred.version == 1
    assert centred.lr == pytest.approx(0.03)  # the mean of 0.02, 0.01 and 0.06
    soft = torch.tensor([[0.9, 0.1]] * 4)
    decoded = made(decoder=Decoder(2), labels=soft).plain()
    assert decoded.images.shape == (16, 3, 8, 8)
    assert torch.equal(decoded.labels, soft.repeat_interleave(4, 0))


def test_centred_labels() -> None:
    assert made().centred_labels().tolist() == [[0.5, -0.5]] * 2 + [[-0.5, 0.5]] * 2
    soft = torch.tensor([[0.75, 0.25]] * 4)
    assert made(labels=soft).centred_labels().tolist() == [[0.25, -0.25]] * 4
    assert torch.equal(made(**NEW["centred"]).centred_labels(), VALUES)


def test_a_choice_of_images_keeps_no_steps() -> None:
    chosen = made(steps=STEPS).choose(torch.tensor([3]))
    assert (chosen.steps, chosen.version) == (None, 1)
    assert chosen.lr == pytest.approx(0.03)


# ---- exchange and pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", NEW)
def test_exports_come_back(name: str, layout: str, tmp_path: Path) -> None:
    distilled = made(**NEW[name])
    export_set(distilled, layout, tmp_path / "out")
    found, notes = import_set(tmp_path / "out", Given())
    assert same(found, distilled)
    assert notes == []


def test_authors_get_what_their_code_trains_on(tmp_path: Path) -> None:
    distilled = made(decoder=Decoder(2), labels=VALUES, label_space=CENTRED)
    export_set(distilled, "authors", tmp_path / "out")
    images, labels = (torch.load(tmp_path / "out" / f"{name}_best.pt") for name in ("images", "labels"))
    assert torch.equal(images, distilled.decoded().images)
    assert labels.tolist() == [0] * 8 + [1] * 8


def test_the_card_and_the_table_tell_it(tmp_path: Path) -> None:
    export_set(made(**NEW["all but a decoder"]), "png", tmp_path / "steps")
    card = (tmp_path / "steps" / "README.md").read_text()
    assert "| labels | centred |" in card
    assert "| learned steps | 3, a rate for each; the learning rate above is their mean |" in card
    assert "| its authors' evaluation | a-recipe-of-tomorrow |" in card
    assert (tmp_path / "steps" / "labels.csv").read_text().splitlines()[0] == "file,class,class_name,y0,y1"
    export_set(made(decoder=Decoder(2)), "png", tmp_path / "stored")
    assert "each image holds 2 x 2 smaller ones" in (tmp_path / "stored" / "README.md").read_text()


def test_a_sheet_shows_the_stored_images(tmp_path: Path) -> None:
    for name, distilled in (("stored", made(decoder=Decoder(2))), ("plain", made())):
        write_png(distilled.picture(), tmp_path / f"{name}.png")
    assert (tmp_path / "stored.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
