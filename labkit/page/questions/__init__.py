"""The visible checks, one module a lesson: ``q01.py`` judges the exercises of lesson 01."""
