"""The licences that a model card may name: the Hugging Face Hub's identifiers, most of them SPDX's in small letters.

https://huggingface.co/docs/hub/repositories-licenses lists them; a card with any other is refused by the Hub.
"""

from __future__ import annotations

OTHER = "other"
"""What stands for every licence that is not listed; its name and link say which."""

_LISTED = frozenset(
    (
        *("afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m"),
        *("bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause"),
        *("bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
        *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0"),
        *("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0"),
        *("cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m"),
        *("deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gemma"),
        *("gfdl", "gpl", "gpl-2.0", "gpl-3.0", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr"),
        *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl"),
        *("ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql", "unknown"),
        *("unlicense", "wtfpl", "zlib"),
    )
)

LICENCE_RULE = (
    "must be a licence of the Hugging Face Hub or its SPDX identifier, such as mit, apache-2.0 or CC-BY-4.0 "
    "(https://huggingface.co/docs/hub/repositories-licenses); for one that is not listed write other, and its name "
    "in license_name"
)


def is_licence(name: str) -> bool:
    """Whether the Hub knows a licence by this name or SPDX identifier."""
    return hub_licence(name) in {*_LISTED, OTHER}


def hub_licence(name: str) -> str:
    """The Hub's identifier of a licence that `is_licence` knows.

    >>> hub_licence("Apache-2.0"), hub_licence("GPL-3.0-or-later")
    ('apache-2.0', 'gpl-3.0')
    """
    return name.lower().removesuffix("-only").removesuffix("-or-later")
