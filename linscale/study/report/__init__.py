"""What a study or a fit found, for the terminal, for machines, and as one page that opens without a network."""

from linscale.study.report.digest import summary
from linscale.study.report.fit_page import write_fit_report
from linscale.study.report.html import is_current, write_report
from linscale.study.report.terminal import print_summary

__all__ = ["is_current", "print_summary", "summary", "write_fit_report", "write_report"]
