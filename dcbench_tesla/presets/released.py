"""Hyper-parameters by the names of the papers' released code, and the settings they are here.

One name can stand for several things: the scripts that train experts, condense and evaluate name their options
independently. Options of the command line stand with their dashes.
"""

from collections.abc import Callable, Collection, Mapping

from dcbench_tesla.errors import UsageError

_TESLA = "for method tesla half of its value"

NAMES: Mapping[str, Mapping[str, str]] = {
    "lr_teacher": {"student_lr": "in distill.py", "experts.lr": "in buffer.py"},
    "lr_init": {"student_lr": ""},
    "lr_img": {"lr_images": _TESLA},
    "lr_lr": {"lr_student_lr": ""},
    "lr_label": {"lr_labels": ""},
    "lr_y": {"lr_labels": ""},
    "lr_net": {"lr_network": "while condensing", "convnet.lr": "in the evaluation"},
    "syn_steps": {"steps": ""},
    "iteration": {"iterations": ""},
    "batch_syn": {"batch_size": ""},
    "batch_real": {"real_batch": ""},
    "batch_train": {"experts.batch_size": "in buffer.py", "convnet.batch_size": "in the evaluation"},
    "max_experts": {"experts.count": ""},
    "num_experts": {"experts.count": ""},
    "max_files": {"experts.count": ""},
    "buffer_path": {"experts.imported": "after dcbench import experts"},
    "learn_labels": {"labels": "labels=learned"},
    "teacher_label": {"labels": "labels=target"},
    "label_init": {"labels": "labels=last for those of an expert"},
    "init": {"start": ""},
    "pix_init": {"start": ""},
    "outer_loop": {"outer": ""},
    "inner_loop": {"inner": ""},
    "zca": {"data.zca": ""},
    "dsa": {"data.augmentation": "data.augmentation=none for False"},
    "dsa_strategy": {"data.augmentation": ""},
    "num_eval": {"evaluation.networks": ""},
    "eval_it": {"evaluation.every": ""},
    "epoch_eval_train": {"convnet.epochs": ""},
    "model": {"--evaluator": "for other networks in the evaluation"},
    "eval_mode": {"--evaluator": ""},
    "num_exp": {"--seed": "once for each"},
    "ipc": {"--ipc": ""},
    "dataset": {"--dataset": ""},
    "method": {"--method": ""},
    "seed": {"--seed": ""},
    "data_path": {"--data-dir": ""},
    "save_path": {"--out": ""},
    "train_epochs": {"max_start_epoch": "experts are trained for max_start_epoch - 1 + expert_epochs epochs"},
}


OURS = frozenset(own for meanings in NAMES.values() for own in meanings)
"""Every setting and option here that a name in released code stands for."""


def meaning(label: str, known: Collection[str], written: Callable[[str], str] = str) -> str | None:
    """Return the sentence that says what a name in released code is here, or ``None`` if it is no such name.

    Args:
        label: the unknown name, as the user wrote it.
        known: the names of the settings and options there are; others are not suggested.
        written: how a setting or an option is written where the name stood.
    """
    name = label.rpartition(".")[2].lstrip("-").replace("-", "_").lower()
    here = {own: note for own, note in NAMES.get(name, {}).items() if own in known}
    if not here:
        return None
    told = " or ".join(f"{written(own)} ({note})" if note else written(own) for own, note in here.items())
    return f"What released code calls {name} is here {told}."


def in_released_code(label: str, known: Collection[str]) -> UsageError | None:
    """Return the error for a setting given by its name in released code, or ``None`` if it is no such name.

    Args:
        label: the unknown setting, as the user wrote it.
        known: the names of the settings there are; others are not suggested.
    """
    told = meaning(label, {*known, *(own for own in OURS if own.startswith("--"))})
    return None if told is None else UsageError(f"unknown setting {label!r}. {told}")
