"""Tied weights: one tensor under two names, counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .match import Matcher, Tensors
from .table import RoleTable, flat_config

# Endings of the names of `transformers` classes that have a head over the vocabulary.
_HEADED = (
    "ForCausalLM", "LMHeadModel", "DoubleHeadsModel", "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration",
)  # fmt: skip


@dataclass
class Ties:
    """`aliases`: name that is not counted -> stored tensor. `named`: stored tensor -> name whose rule holds for it.

    `copies`: stored tensors that are not counted.
    """

    aliases: dict[str, str] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)


def find_ties(
    table: RoleTable,
    matcher: Matcher,
    tensors: Tensors,
    shared: Mapping[str, str],
    config: Mapping[str, Any],
    equal: Callable[[str, str], bool] | None,
) -> Ties:
    """Return the ties of a checkpoint: of storage (`shared`), of configuration, of content.

    Of two tied names the table's own tensor is counted, whichever of them is stored. Two stored copies count as tied
    when the configuration does not deny it and `equal` finds the same content in both.
    """
    ties = Ties(dict(shared), copies=set(shared))
    tied = _told(table, config)
    for alias, target in _possible(table, matcher, config):
        kept, other = matcher.stored(target), matcher.stored(alias)
        if kept and other:
            if equal is not None and tensors[kept].shape == tensors[other].shape and equal(kept, other):
                ties.aliases[other] = kept
                ties.copies.add(other)
        elif other and (tied or other in shared.values()):
            ties.named[other] = target
            ties.aliases[alias] = other
        elif kept and (kept in shared.values() or (tied is not False and _headed(table, matcher, kept, config))):
            ties.aliases[alias] = kept
    return ties


def _possible(table: RoleTable, matcher: Matcher, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if flat_config(config).get("tie_word_embeddings") is False:
        return
    for alias, targets, *beside in table.tied:
        choices = targets.split(" | ")
        if all(matcher.stored(name) for name in beside):
            yield alias, next((name for name in choices if matcher.stored(name)), choices[0])


def _told(table: RoleTable, config: Mapping[str, Any]) -> bool | None:
    """Return whether the configuration ties weights, by what it says or by its model type's default; None: unknown."""
    said, model_type = flat_config(config).get("tie_word_embeddings"), config.get("model_type")
    if isinstance(said, bool) or model_type is None:
        return said if isinstance(said, bool) else None
    default = table.tied_by_default
    return default if isinstance(default, bool) else model_type in default


def _headed(table: RoleTable, matcher: Matcher, target: str, config: Mapping[str, Any]) -> bool:
    """Return whether a model with a head was saved, rather than the base model alone."""
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return any(str(name).endswith(_HEADED) for name in architectures)
    return matcher.bare(target) != target or table.prefixes == ("",)
