"""Distillation: a student learns a teacher's distributions (`apr distill`)."""
