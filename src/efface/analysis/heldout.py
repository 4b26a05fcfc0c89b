"""How is a probe judged fairly? On groups it was not trained on, beside shuffled labels, with resampled groups.

A group is what is independent of the others: a text, or all pairs of one prompt. A group may hold one class (a text)
or both (pairs); it is never split between training and test.
"""

from typing import Any

import numpy as np

from efface.errors import UserError
from efface.resampling import Ranking, draw_resamples


class HeldOut:
    """n labelled states in groups.

    Args:
        labels: (n,) 0 or 1.
        groups: (n,) the name of the group of each state; None: each state alone.
        folds: of the cross-validation; each class must be in at least as many groups.
        seed: of folds, shuffling and resampling.

    Raises:
        UserError: if there is not one group for each state, or there are too few groups.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray | None, folds: int, seed: int):
        if groups is not None and len(groups) != len(labels):
            raise UserError(f"there are {len(labels)} states and {len(groups)} groups: each state needs its group.")
        names, self.groups = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
        self.labels, self.folds, self.seed, self.n_groups = labels, folds, seed, len(names)
        fewest = self.fewest_groups()
        if not 2 <= folds <= fewest:
            raise UserError(
                f"folds={folds}, and one class is in {fewest} group(s) (texts or pairs): at least 2 folds are needed "
                "and at most one for each group of a class. Pass more data or fewer folds."
            )

    def scores(self, classifier: Any, features: Any, labels: np.ndarray) -> np.ndarray:
        """(n,) the decision function at each state of a scikit-learn classifier trained on the other folds."""
        from sklearn.model_selection import GroupKFold, PredefinedSplit, cross_val_predict

        if (self._kinds(labels) == 1).all():  # pairs: any fold has both classes, so folds of like size are best
            splits = list(GroupKFold(self.folds).split(labels, groups=self.groups))
        else:
            splits = list(PredefinedSplit(self.dealt(labels, self.folds)).split())
        return cross_val_predict(classifier, features, labels, cv=splits, method="decision_function")

    def dealt(self, labels: np.ndarray, parts: int) -> np.ndarray:
        """(n,) the part, from 0, that each state's group is dealt to at random.

        In the order one class, both, the other, so that every part gets its share of either class.
        """
        order = np.lexsort((np.random.default_rng(self.seed).random(self.n_groups), self._kinds(labels)))
        part = np.empty(self.n_groups, dtype=int)
        part[order] = np.arange(self.n_groups) % parts
        return part[self.groups]

    def fewest_groups(self) -> int:
        """How many groups hold a class, of the class that is in fewer."""
        kinds = self._kinds(self.labels)
        return min(int((kinds != 2).sum()), int((kinds != 0).sum()))

    def shuffled_labels(self) -> np.ndarray:
        """(n,) labels that keep their balance and blocks, not their meaning.

        A random half of the groups that hold both classes swap them; those of one class are dealt each other's label.
        """
        generator = np.random.default_rng(self.seed)
        swap = generator.random(self.n_groups) < 0.5
        kinds = self._kinds(self.labels)
        dealt = kinds // 2
        dealt[kinds != 1] = generator.permutation(dealt[kinds != 1])
        return np.where((kinds == 1)[self.groups], self.labels ^ swap[self.groups], dealt[self.groups])

    def figures(self, scores: np.ndarray, labels: np.ndarray, resamples: int) -> np.ndarray:
        """(1 + resamples, 2): balanced accuracy and AUC, of the data and then of groups drawn with replacement.

        The draws are the same at every call, so that rows of two probes can be subtracted. NaN where a class is not
        drawn at all.
        """
        right = (scores > 0) == labels
        # (2, 2, groups): right ones and all, by class
        totals = np.array(
            [
                [np.bincount(self.groups, (labels == label) & kind, self.n_groups) for label in (0, 1)]
                for kind in (right, np.ones_like(right))
            ]
        )
        ranking = Ranking(scores, labels == 1, self.groups)
        tables = []
        for times in [
            np.ones((1, self.n_groups)),
            *draw_resamples(self.n_groups, resamples, self.seed, width=len(labels)),
        ]:
            hits, amount = times @ totals[0].T, times @ totals[1].T  # (r, 2) each
            with np.errstate(invalid="ignore"):  # a class that is not drawn
                tables.append(np.stack([(hits / amount).mean(1), ranking.auc(times)], axis=1))
        return np.concatenate(tables)

    def _kinds(self, labels: np.ndarray) -> np.ndarray:
        """(groups,) 0 or 2 where a group holds class 0 or 1 alone, 1 where it holds both."""
        holds = np.zeros((2, self.n_groups), dtype=int)
        holds[labels, self.groups] = 1
        return 1 + holds[1] - holds[0]
