"""Schedules: a command at set times, written for engines that exist: cron, systemd, Kubernetes, Dagster."""
