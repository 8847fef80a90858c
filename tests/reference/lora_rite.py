"""LoRA-RITE the slow way: one pair and one side at a time, straight from the formulas.

Written from the specification of the paper's update and of the released optimizer's options.
"""

import math

import torch


def inverse_root(second, escaped, epsilon):
    """V^(-1/2), one eigenvalue after another."""
    values, vectors = torch.linalg.eigh(second)
    root = torch.zeros_like(second)
    for j in range(len(values)):
        v = vectors[:, j : j + 1]
        root += v @ v.T / (math.sqrt(max(values[j].item(), 0.0) + escaped) + epsilon)
    return root


def lost(old, turned):
    """What a turn of the basis takes from second moments."""
    by_value = max(a - b for a, b in zip(*(torch.linalg.eigvalsh(m).tolist() for m in (old, turned)), strict=True))
    return min(max(by_value, 0.0), max(torch.trace(old).item() - torch.trace(turned).item(), 0.0))


class SlowRite:
    """All pairs (A, B) of a model; `step` reads their gradients and writes them."""

    def __init__(self, pairs, lr, **settings):
        self.pairs, self.lr, self.count = pairs, lr, 0
        self.set = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-6, "max_rms": 1.0, "max_norm": 1.0}
        self.set |= {"weight_decay": 0.0, "escaped_mass": False, **settings}
        self.memory = [{"A": None, "B": None} for _ in pairs]

    def decay(self, beta):
        t = self.count
        return beta * (1 - beta ** (t - 1)) / (1 - beta**t)

    def unmagnify(self, left, left_grad, right):
        """QR of the other factor, and this one's gradient freed of its magnitude."""
        Q, R = torch.linalg.qr(right)
        inverse = torch.linalg.pinv(R)
        U = left_grad @ inverse
        rms = math.sqrt((U**2).mean().item())
        if self.set["max_rms"] is not None and rms > self.set["max_rms"]:
            U = torch.zeros_like(U)
        return {"Q": Q, "inverse": inverse, "U": U, "left": left}

    def advance(self, now, memory):
        U, Q = now["U"], now["Q"]
        k = Q.shape[1]
        if memory is None:
            memory = {"Q": torch.zeros_like(Q), "M": torch.zeros_like(U), "V": U.new_zeros(k, k), "escaped": 0.0}
        b1, b2 = self.decay(self.set["beta_1"]), self.decay(self.set["beta_2"])
        P = Q.T @ memory["Q"]
        turned = P @ memory["V"] @ P.T
        escaped = b2 * (memory["escaped"] + lost(memory["V"], turned)) if self.set["escaped_mass"] else 0.0
        V = b2 * turned + (1 - b2) * U.T @ U / len(U)
        V = (V + V.T) / 2
        M = b1 * memory["M"] @ P.T + (1 - b1) * U @ inverse_root(V, escaped, self.set["epsilon"])
        return M @ now["inverse"].T, {"Q": Q, "M": M, "V": V, "escaped": escaped}

    @torch.no_grad()
    def step(self):
        self.count += 1
        sides = []
        for A, B in self.pairs:
            sides.append(("A", self.unmagnify(A.T, A.grad.T, B)))
            sides.append(("B", self.unmagnify(B, B.grad, A.T)))
        norm = math.sqrt(sum((now["U"] ** 2).sum().item() for _, now in sides))
        moves = []
        for index, (side, now) in enumerate(sides):
            if self.set["max_norm"] is not None and norm > self.set["max_norm"]:
                now["U"] = now["U"] * self.set["max_norm"] / norm
            memory = self.memory[index // 2]
            move, memory[side] = self.advance(now, memory[side])
            moves.append((now["left"], move + self.set["weight_decay"] * now["left"]))
        for left, move in moves:
            left -= self.lr * move
