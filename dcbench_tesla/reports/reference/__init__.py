"""Published accuracies as data files, in percent as printed, with their sources and notes.

``paper_table1.csv``, ``paper_table2.csv`` and ``paper_table3.csv`` are the tables of Cui, Wang, Si, Hsieh, "Scaling Up
Dataset Distillation to ImageNet-1K with Constant Memory" (ICML 2023); ``published_accuracy.csv`` gathers what others
print, a row per source. ``aliases.toml`` maps their names to those here. :mod:`dcbench_tesla.reports.published` reads
them.
"""
