"""Pipelines know machines and runs: the only home of Ray and MLflow. They never open params.yaml."""

from psclap.startup import collect_seldom_in_programs

collect_seldom_in_programs()
