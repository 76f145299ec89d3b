"""Published accuracies as data, in percent, as printed; sources and notes are kept.

``paper_table1.csv``, ``paper_table2.csv`` and ``paper_table3.csv`` are the tables of Cui, Wang, Si, Hsieh, "Scaling Up
Dataset Distillation to ImageNet-1K with Constant Memory" (ICML 2023); ``published_accuracy.csv`` gathers what others
printed, a row a source. ``aliases.toml`` says what their names mean here. :mod:`dcbench_tesla.reports.published` reads
them.
"""
