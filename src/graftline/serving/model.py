r"""The script that MLflow runs to load a graftline model; the model holds it, what it imports, and the bundle.

A request, when `mlflow models serve` runs:

    curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \
        -d "{\"dataframe_records\": [{\"image\": \"$(base64 -w0 photo.jpg)\"}]}"
"""

from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from graftline.bundle.ensemble import load_predictor
from graftline.serving.answers import classify


class ImageClassifier(PythonModel):
    """Classify a table with a column of base64 images; the answer is a table of classes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle."""
        self._predictor = load_predictor(context.artifacts["bundle"])

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  # MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002  # MLflow's signature
    ) -> pd.DataFrame:
        """Classify the images in the column "image"."""
        try:
            return classify(self._predictor, model_input["image"].tolist())
        except ValueError as error:  # MLflow's server answers this one with 400 and the message, any other without it
            raise MlflowException.invalid_parameter_value(str(error)) from error


set_model(ImageClassifier())
