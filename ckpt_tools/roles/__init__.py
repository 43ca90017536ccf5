"""Roles: canonical names and canonical matrices for whatever a checkpoint stores."""

from .layout import Layout as Layout
from .layout import WeightInfo as WeightInfo
from .layout import assign as assign
from .select import select_names as select_names
from .table import RoleTable as RoleTable
from .table import Rule as Rule
from .table import module as module
from .table import modules as modules
from .toml import shipped_tables as shipped_tables
from .toml import table_from as table_from
