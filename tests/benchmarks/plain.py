"""What people run today, written plainly: the yardstick that speed is measured with.

Eager PyTorch as the literature writes it: one autograd call a matching step, the class loops of DM and DSA, one
network at a time. Batches, augmentations and seeds are drawn as the harness draws them, so that ``tests/test_plain.py``
can show that both do the same work. Nothing here is tuned, and nothing here is to be: another yardstick would move
every ratio.

Shapes: N synthetic images, C channels, H = W = side, K classes, P parameters, T matching steps.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.compute.networks import Network, seeded
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.data.augmentation import Augmentation, Draw
from dcbench_tesla.interface import Problem


def forward(network: nn.Module, theta: Tensor, images: Tensor) -> Tensor:
    """Return the logits of ``network`` at the flat parameters ``theta``: a slice a parameter."""
    parameters, offset = {}, 0
    for name, p in network.named_parameters():
        parameters[name] = theta[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    logits: Tensor = torch.func.functional_call(network, parameters, (images,))
    return logits


def inner_batches(problem: Problem, count: int, batch_size: int, steps: int) -> Iterator[tuple[Tensor, Draw]]:
    """Yield indices and augmentation of every matching step of iteration 0."""
    chunks = math.ceil(count / batch_size)
    for k in range(steps):
        permutation, chunk = divmod(k, chunks)
        order = torch.randperm(count, generator=problem.generator("inner batches", 0, permutation))
        indices = order[chunk * batch_size : (chunk + 1) * batch_size]
        rng = problem.generator("inner augmentation", 0, k)
        yield indices, problem.task.augmentation.draw(len(indices), problem.task.side, rng)


def unrolled(
    problem: Problem,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    target: Tensor,
    lr: float,
    batch_size: int,
    steps: int,
) -> tuple[float, Tensor, Tensor]:
    """MTT: keep the graph of all steps; return the loss, and its gradient in the images and in the learning rate."""
    network = problem.build_network()
    images = images.clone().requires_grad_()
    rate = torch.tensor(lr, requires_grad=True)
    student = start.clone().requires_grad_()
    for indices, draw in inner_batches(problem, len(images), batch_size, steps):
        x = problem.task.augmentation(images[indices], draw)
        loss = F.cross_entropy(forward(network, student, x), labels[indices])
        gradient = torch.autograd.grad(loss, student, create_graph=True)[0]
        student = student - rate * gradient
    matching = F.mse_loss(student, target, reduction="sum") / F.mse_loss(start, target, reduction="sum")
    image_gradient, lr_gradient = torch.autograd.grad(matching, [images, rate])
    return matching.item(), image_gradient, lr_gradient


def two_pass(
    problem: Problem,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    target: Tensor,
    lr: float,
    batch_size: int,
    steps: int,
) -> tuple[float, Tensor, Tensor]:
    """TESLA: a pass for the student's end, a pass for every step's own gradient; students are constants throughout."""
    network = problem.build_network()
    batches = list(inner_batches(problem, len(images), batch_size, steps))
    students = [start]
    gradient_sum = torch.zeros_like(start)
    for indices, draw in batches:
        student = students[-1].clone().requires_grad_()
        x = problem.task.augmentation(images[indices], draw)
        loss = F.cross_entropy(forward(network, student, x), labels[indices])
        gradient = torch.autograd.grad(loss, student)[0]
        gradient_sum += gradient
        students.append(students[-1] - lr * gradient)
    distance = (start - target).square().sum()
    difference = students[-1] - target
    image_gradient = torch.zeros_like(images)
    for student, (indices, draw) in zip(students, batches, strict=False):
        leaf = images.clone().requires_grad_()
        at = student.clone().requires_grad_()
        x = problem.task.augmentation(leaf[indices], draw)
        loss = F.cross_entropy(forward(network, at, x), labels[indices])
        gradient = torch.autograd.grad(loss, at, create_graph=True)[0]
        share = -2 * lr / distance * (difference @ gradient)
        image_gradient += torch.autograd.grad(share, leaf)[0]
    lr_gradient = -2 / distance * (difference @ gradient_sum)
    return (difference.square().sum() / distance).item(), image_gradient, lr_gradient


def expert_epoch(
    network: nn.Module, images: Tensor, labels: Tensor, augmentation: Augmentation, lr: float, batch_size: int
) -> float:
    """Train epoch 0 of expert 0 on prepared ``images`` in memory; return the mean loss."""
    optimiser = torch.optim.SGD(network.parameters(), lr=lr)
    rng = generator(0, "expert epoch", 0, 0)
    total = 0.0
    for indices in torch.randperm(len(images), generator=rng).split(batch_size):
        x = augmentation(images[indices], augmentation.draw(len(indices), images.shape[-1], rng))
        loss = F.cross_entropy(network(x), labels[indices])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item() * len(indices)
    return total / len(images)


def train_networks(
    networks: Sequence[nn.Module],
    seeds: Sequence[int],
    images: Tensor,
    labels: Tensor,
    augmentation: Augmentation,
    *,
    epochs: int,
    lr: float,
    batch_size: int = 256,
) -> None:
    """Train the networks of an evaluation on a distilled set, one after the other, by the published recipe."""
    for network, seed in zip(networks, seeds, strict=True):
        for epoch in range(epochs):
            if epoch in (0, epochs // 2):
                now = lr if epoch == 0 else 0.1 * lr
                optimiser = torch.optim.SGD(network.parameters(), lr=now, momentum=0.9, weight_decay=5e-4)
            rng = generator(seed, "evaluation epoch", epoch)
            for indices in torch.randperm(len(images), generator=rng).split(batch_size):
                x = augmentation(images[indices], augmentation.draw(len(indices), images.shape[-1], rng))
                loss = F.cross_entropy(network(x), labels[indices])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    """Return the share of prepared ``images`` whose most likely class is right."""
    network.eval()
    right = 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        right += int((network(x).argmax(1) == y).sum().item())
    return right / len(images)


def _class_batches(
    problem: Problem, images: Tensor, real_batch: int, *repetition: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every class's real and synthetic batch, augmented alike."""
    augmentation, ipc = problem.task.augmentation, problem.ipc
    for c, members in enumerate(problem.train.members):
        order = torch.randperm(len(members), generator=problem.generator("real batch", *repetition, c))
        rng = problem.generator("siamese augmentation", *repetition, c)
        draw = augmentation.draw(1, problem.task.side, rng, siamese=True)
        real = augmentation(problem.train.inputs(members[order[:real_batch]]), draw)
        yield real, augmentation(images[c * ipc : (c + 1) * ipc], draw)


def _fresh_network(problem: Problem) -> Network:
    with seeded(problem.seed_for("network", 0)):
        return problem.build_network()


def distribution_matching(problem: Problem, images: Tensor, real_batch: int) -> tuple[float, Tensor]:
    """DM: iteration 0, class by class; return the loss and its gradient in the images."""
    embed = _fresh_network(problem).features
    images = images.clone().requires_grad_()
    loss = torch.zeros(())
    for real, synthetic in _class_batches(problem, images, real_batch, 0):
        of_real = embed(real).detach()
        of_synthetic = embed(synthetic)
        loss = loss + ((of_real.mean(0) - of_synthetic.mean(0)) ** 2).sum()
    return loss.item(), torch.autograd.grad(loss, images)[0]


def gradient_matching(problem: Problem, images: Tensor, real_batch: int) -> tuple[float, Tensor]:
    """DSA: the one step of iteration 0 at IPC 1, class by class; return the loss and its gradient in the images."""
    network = _fresh_network(problem)
    parameters = list(network.parameters())
    images = images.clone().requires_grad_()
    loss = torch.zeros(())
    for c, (real, synthetic) in enumerate(_class_batches(problem, images, real_batch, 0, 0)):
        of_real = F.cross_entropy(network(real), torch.full((len(real),), c))
        real_gradients = [g.detach() for g in torch.autograd.grad(of_real, parameters)]
        of_synthetic = F.cross_entropy(network(synthetic), torch.full((len(synthetic),), c))
        gradients = torch.autograd.grad(of_synthetic, parameters, create_graph=True)
        for a, b in zip(real_gradients, gradients, strict=True):
            if a.ndim > 1:
                a, b = a.flatten(1), b.flatten(1)
                loss = loss + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return loss.item(), torch.autograd.grad(loss, images)[0]
