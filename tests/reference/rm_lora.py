"""RM-LoRA the slow way: loops, autograd and one module at a time, written from the description alone.

Nothing here is fast, general or imported by the package; it is the oracle that the package is held against.
"""

import torch


def penalty_of_paper(A, B):
    """Eq. 10 for one module."""
    eye = torch.eye(A.shape[0], dtype=A.dtype)
    return (A @ A.T - eye).square().sum() + (B.T @ B - eye).square().sum()


def penalty_of_authors(pairs):
    """Mean over all A and B of the Frobenius norm, not squared, of Gram minus identity."""
    norms = []
    for A, B in pairs:
        eye = torch.eye(A.shape[0], dtype=A.dtype)
        norms.append(torch.sqrt((A @ A.T - eye).square().sum()))
        norms.append(torch.sqrt((B.T @ B - eye).square().sum()))
    return sum(norms) / len(norms)


def off_diagonal_penalty(A, B):
    """Eq. 10 without the lengths: only products of different directions."""
    total = 0 * (A.sum() + B.sum())  # so that autograd has something to differentiate at r = 1
    r = A.shape[0]
    for i in range(r):
        for j in range(r):
            if i != j:
                total = total + (A[i] @ A[j]) ** 2 + (B[:, i] @ B[:, j]) ** 2
    return total


def mask_gradients(A_grad, B_grad, kept_rows, kept_columns):
    """Algorithm 1 for one module: rows of A and columns of B outside the kept set lose their gradient."""
    for i in range(A_grad.shape[0]):
        if i not in kept_rows:
            A_grad[i, :] = 0
    for j in range(B_grad.shape[1]):
        if j not in kept_columns:
            B_grad[:, j] = 0


def authors_step(model, pairs, loss, optimizer, step, coefficient, max_norm, kept):
    """One step in the authors' order: penalty in the loss, backward, clip everything, mask from the second step on."""
    (loss + coefficient * penalty_of_authors([(A, B) for _, A, B in pairs])).backward()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], max_norm)
    if step > 0:
        for name, A, B in pairs:
            mask_gradients(A.grad, B.grad, *kept[name])
    optimizer.step()
    optimizer.zero_grad()
