"""What a study found, for the terminal, for machines, and as one page that opens without a network."""

from linscale.study.report.digest import summary
from linscale.study.report.html import write_report
from linscale.study.report.terminal import print_summary

__all__ = ["print_summary", "summary", "write_report"]
