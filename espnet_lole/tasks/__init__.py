"""Task of ESPnet.

What ESPnet does at import and a training does not need is left out, nearly half of the time until one starts: it and inflect have
typeguard compile their functions anew to check their arguments, and g2p_en, which its phoneme tokenizers use, asks the network
for data of NLTK. A module that is found and not run stands for it as ESPnet is imported.
"""

import sys
from importlib.util import find_spec, module_from_spec
from unittest.mock import patch

g2p_en = sys.modules.get("g2p_en")
sys.modules["g2p_en"] = g2p_en or module_from_spec(find_spec("g2p_en"))
with patch("typeguard.typechecked", lambda function: function):
    import espnet2.tasks.abs_task
    import espnet2.train.preprocessor  # noqa: F401
if g2p_en is None:
    del sys.modules["g2p_en"]
