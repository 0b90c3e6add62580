"""Pure functions of predictions: accuracies and their intervals, affinity, uncertainty, calibration, detection."""

from advbench.metrics.affinity import Affinity as Affinity
from advbench.metrics.affinity import affinity as affinity
from advbench.metrics.affinity import affinity_intervals as affinity_intervals
from advbench.metrics.affinity import resampled_accuracies as resampled_accuracies
from advbench.metrics.predictions import CONFIDENCE as CONFIDENCE
from advbench.metrics.predictions import RESAMPLES as RESAMPLES
from advbench.metrics.predictions import Bools as Bools
from advbench.metrics.predictions import Floats as Floats
from advbench.metrics.predictions import Interval as Interval
from advbench.metrics.predictions import Predictions as Predictions
from advbench.metrics.predictions import draw_interval as draw_interval
from advbench.metrics.predictions import ensemble_interval as ensemble_interval
from advbench.metrics.predictions import shared_spread as shared_spread
from advbench.metrics.predictions import wilson as wilson
from advbench.metrics.uncertainty import BINS as BINS
from advbench.metrics.uncertainty import RETENTION_FRACTIONS as RETENTION_FRACTIONS
from advbench.metrics.uncertainty import Calibration as Calibration
from advbench.metrics.uncertainty import Detection as Detection
from advbench.metrics.uncertainty import Retention as Retention
from advbench.metrics.uncertainty import Uncertainty as Uncertainty
from advbench.metrics.uncertainty import calibration as calibration
from advbench.metrics.uncertainty import detection as detection
from advbench.metrics.uncertainty import histogram as histogram
from advbench.metrics.uncertainty import retention as retention
from advbench.metrics.uncertainty import uncertainty as uncertainty
