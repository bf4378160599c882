"""Chapter 25, toward the ceiling: where attribution loses, rung by rung, and a judge that no estimator has seen."""
