"""The bundle as an MLflow model, for whoever loads it by MLflow's own means.

    mlflow.set_tracking_uri("sqlite:///var/mlflow/mlflow.db")
    mlflow.pyfunc.load_model("models:/banking77@champion").predict(["where is my card?"])

MLflow copies this file, the loader that it imports, and the bundle into the logged
model and runs them where the model is loaded: nothing is pickled, and the project
need not be installed there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tasks.release.foreign import foreign
from tasks.release.servable import Servable


class TextClassifier(PythonModel):
    """Texts in, labels and scores out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle; a line is logged where it was built for another kind of machine."""
        self._servable = Servable(Path(context.artifacts["bundle"]))
        if warning := foreign(str(self._servable.serving.get("profile"))):
            logging.getLogger("stillroom").warning("this bundle was %s", warning)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Label and score of each text in the first column.

        Args:
            context: MLflow's; not read.
            model_input: MLflow makes a frame of one column of a list or a Series, too.
            params: none are known.

        Returns:
            Columns ``label`` (str) and ``score`` (softmax, in [0, 1]), index as given.

        Raises:
            ValueError: a text is missing.
        """
        texts = model_input.iloc[:, 0]
        if texts.isna().any():
            row = int(texts.isna().to_numpy().argmax())
            raise ValueError(f"row {row}: found no text, expected a string")
        answers = self._servable.predict(texts.astype(str).tolist()) if len(texts) else []
        return pd.DataFrame(
            {
                "label": pd.Series([answer.label for answer in answers], dtype="object"),
                "score": pd.Series([answer.score for answer in answers], dtype="float64"),
            }
        ).set_index(model_input.index)


set_model(TextClassifier())
