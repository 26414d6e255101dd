"""The winner of a study as a recipe file, trained at the full budget, and offered to the registry's gate."""

from __future__ import annotations

from infra.errors import UserError
from pipelines.driver import train
from pipelines.next_command import command
from pipelines.paths import shown
from pipelines.summary import summarise
from pipelines.tuning.ledger import Trial, run_name
from pipelines.tuning.study import Study

WINNER = "winner.toml"


def finalize(study: Study, winner: Trial, run_id: str) -> None:
    """Write the winner's recipe file and bring its run to its end, below the study's run in MLflow.

    The file says what `train.py` needs and nothing of the study. A run that is finished is not run again.

    Raises:
        UserError: the winner's settings changed on the way, which no recipe says.
    """
    space = study.plan.space
    if winner.changes:
        folder = shown(f"{study.plan.base.run.home}/{run_name(space.name, winner)}")
        raise UserError(
            f"trial {winner.number:03d} of study {space.name} changed settings {len(winner.changes)} times, which "
            f"no recipe says: register its weights with `{command('register', folder, '--name', space.name)}`"
        )
    recipe = study.plan.final(winner.values)
    study.store.write(WINNER, recipe.to_toml().encode())
    study.console.print(f"winner      trial {winner.number:03d}: {shown(f'{study.store.description}/{WINNER}')}")
    outcome = train(recipe, study.console, parent_run_id=run_id)
    study.console.print(f"final       trained with its own seed; the trial had {winner.accuracy:.2%} in the study")
    summarise(study.console, recipe, outcome)
