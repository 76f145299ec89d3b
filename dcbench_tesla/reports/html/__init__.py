"""The report: one HTML page from the results, with everything in it, for any browser and without a network.

It is made of the files under ``--out`` alone: the same results are the same page, byte for byte.
"""

from dcbench_tesla.reports.html.page import page

__all__ = ["page"]
