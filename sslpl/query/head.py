"""The linear head of a backbone, which strategies apply to changed embeddings."""

from torch import nn

from sslpl.types import UserError


def linear_head(backbone: nn.Module) -> nn.Linear:
    """Returns the last layer of a backbone; UserError if it is not an nn.Linear named `head`."""
    head = getattr(backbone, "head", None)
    if not isinstance(head, nn.Linear):
        raise UserError("this query needs a backbone whose last layer is an nn.Linear named `head`")
    return head
