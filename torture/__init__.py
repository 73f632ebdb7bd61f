"""What tries to break autoencode: hostile files, kills, full disks, rivals, forgeries, dull images, long runs.

`python -m torture` runs every part and prints a table; `python -m torture PART --cases N --seed S` one of them.
The quick part of each is in tests/torture.
"""
