"""L-OBS: the weights of least sensitivity removed all at once (Dong, Chen & Pan 2017).

"Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon", section 3.2: with the Hessian H of the
layer's own error, which is the Gram matrix of its input and the same for all rows of a group, removing weight j of a
row and re-fitting the others of the row costs, and does::

    L_j = w_j^2 / (2 [H^-1]_jj),    w <- w - w_j / [H^-1]_jj H^-1 e_j

The weights of lowest L_j of the whole layer go, or of each group of N:M; sensitivities are those of the dense layer and
not brought up to date, which is what sets it apart from OBC.

The update is the minimum of the paper's quadratic with all removed weights Q held at zero together, in closed form
``w - (H^-1)_:Q ((H^-1)_QQ)^-1 w_Q``, which is masked least squares. The paper's corrections, each for one weight alone,
agree with it where one weight of a row goes; added up for several they would leave removed weights other than zero.

The loss is that of :mod:`.choosing`: w is its minimum w*, about which the paper's expansion has no slope. H is
damped, and taken over all inputs of the layer, weights that are zero already included; these go first.
"""

from __future__ import annotations

from torch import Tensor

from snows_core.methods.choosing import RefittedChoice, damped_problem, highest
from snows_core.methods.origin import GRAM, LEAST_SQUARES, NORMAL_EQUATIONS, QUADRATIC, SORT, Origin
from snows_core.methods.problem import LayerProblem


class LayerwiseObs(RefittedChoice):
    """Choose a layer's mask by its dense sensitivities, and re-fit the weights that it keeps."""

    origin = Origin(
        paper="Dong, Chen & Pan: Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon",
        year=2017,
        needs=GRAM,
        cost=f"{NORMAL_EQUATIONS} + {QUADRATIC} + {SORT} + {LEAST_SQUARES}",
        limits="sensitivities are those of the dense layer, not brought up to date",
    )

    def choose(self, problem: LayerProblem) -> Tensor:
        """Return the mask of the highest sensitivities."""
        damped, best = damped_problem(problem, self.recipe.ridge)
        diagonal = damped.inverse().diagonal(dim1=1, dim2=2)[damped.group_of(len(best))]  # (out, d)
        return highest(problem, best.square() / (2 * diagonal)).view_as(problem.mask)
