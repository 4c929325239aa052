"""Pipelines know machines and runs: the only home of Ray and MLflow. They never open params.yaml."""
