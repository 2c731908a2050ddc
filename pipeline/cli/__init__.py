"""The command line: what was typed becomes a composed stage, or several, in this process.

texts → parse → resolve → validate → compose → ComposedStage.run(directory) → result
"""

from graftline.pipeline.cli.composed_stage import ComposedStage, compose, compose_all

__all__ = ["ComposedStage", "compose", "compose_all"]
