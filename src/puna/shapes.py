"""The shape legend of the whole code base, and `sizes`, which reads and checks it.

    B  rows of a packed batch      N  query heads           E  experts            I  image tiles
    T  tokens of the flat batch    K  key/value heads       R  routed rows        P  patches of a tile
    S  keys a query may look at    H  size of a head        F  hidden width       W  width of the vision tower
    L  layers                      D  width of the model    V  vocabulary

A comment such as `# T N H` at the end of a line states the shape of what the line makes.
"""

from torch import Tensor


def sizes(x: Tensor, legend: str) -> tuple[int, ...]:
    """Returns the sizes of `x`, one per name in `legend`; a number in the legend must match the size exactly.

    >>> T, D = sizes(x, "T D")

    Raises ValueError when the number of axes or a fixed size differs: that is a fault of the caller's code.
    """
    names = legend.split()
    shape = tuple(x.shape)
    if len(names) != len(shape) or any(n.isdigit() and int(n) != s for n, s in zip(names, shape, strict=True)):
        raise ValueError(f"expected a tensor of shape [{legend}], got {list(shape)}")
    return shape
