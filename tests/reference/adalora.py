"""AdaLoRA the slow way: Algorithm 1 with loops over modules and triplets, written from the paper alone."""

import torch


def budget(step, start, target, total, initial, final):
    """Eq. 12, in triplets over all modules."""
    if step <= initial:
        return start
    if step > total - final:
        return target
    return int(target + (start - target) * (1 - (step - initial) / (total - final - initial)) ** 3)


def penalty(A, B):
    """The two norms of Eq. 4, not squared, as the released code and PEFT have them."""
    eye = torch.eye(len(A), dtype=A.dtype)
    return [((A @ A.T - eye) ** 2).sum().sqrt(), ((B.T @ B - eye) ** 2).sum().sqrt()]


class SlowAllocator:
    """Importance of every entry, and the pruning of triplets; `modules` are (A, E, B) with gradients."""

    def __init__(self, total, target_r, initial, final, interval, beta1=0.85, beta2=0.85):
        self.total, self.target_r, self.initial, self.final = total, target_r, initial, final
        self.interval, self.beta1, self.beta2 = interval, beta1, beta2
        self.smoothed, self.uncertain, self.kept = {}, {}, None

    def after_step(self, modules, step):
        start, target = sum(len(A) for A, _, _ in modules), self.target_r * len(modules)
        if step < self.total - self.final:
            self.smooth(modules)
        if step > self.total - self.final:
            for (_, E, _), kept in zip(modules, self.kept, strict=True):
                E[~kept] = 0
        elif step == self.total - self.final or (step > self.initial and step % self.interval == 0):
            self.prune(modules, budget(step, start, target, self.total, self.initial, self.final))

    def smooth(self, modules):
        for m, parts in enumerate(modules):
            for p, part in enumerate(parts):
                now = (part * part.grad).abs()
                before = self.smoothed.get((m, p), torch.zeros_like(now))
                unsure = self.uncertain.get((m, p), torch.zeros_like(now))
                self.smoothed[m, p] = self.beta1 * before + (1 - self.beta1) * now
                self.uncertain[m, p] = self.beta2 * unsure + (1 - self.beta2) * (now - self.smoothed[m, p]).abs()

    def score(self, m, p):
        return self.smoothed[m, p] * self.uncertain[m, p]

    def prune(self, modules, count):
        scores = []
        for m, (A, _, _) in enumerate(modules):
            for i in range(len(A)):
                score = self.score(m, 1)[i, 0] + self.score(m, 0)[i].mean() + self.score(m, 2)[:, i].mean()
                scores.append((score.item(), m, i))
        best = {(m, i) for _, m, i in sorted(scores, reverse=True)[:count]}
        self.kept = [torch.tensor([(m, i) in best for i in range(len(A))]) for m, (A, _, _) in enumerate(modules)]
        for (_, E, _), kept in zip(modules, self.kept, strict=True):
            E[~kept] = 0
