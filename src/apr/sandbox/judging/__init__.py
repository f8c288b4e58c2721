"""The trusted side: decides about answers, and never runs the program's code."""
