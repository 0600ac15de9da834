"""Task of ESPnet.

ESPnet, and inflect which it imports, have typeguard compile their functions anew to check their arguments. That takes two
fifths of the time until a training starts, and is left out.
"""

from unittest.mock import patch

with patch("typeguard.typechecked", lambda function: function):
    import espnet2.tasks.abs_task
    import espnet2.train.preprocessor  # noqa: F401
