"""MotionQA: made-up videos with known contents (scenes.py), and multiple choice about them (questions.py)."""
