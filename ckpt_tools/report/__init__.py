"""`ckpt report`: results files as one HTML page that opens anywhere, without server and network."""

from .build import MEGABYTES, build_report
from .target import write_report

__all__ = ["MEGABYTES", "build_report", "write_report"]
