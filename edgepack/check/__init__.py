"""A pack held against an earlier one: is it larger, does it execute or fetch more, has it lost more, is it slower?"""
