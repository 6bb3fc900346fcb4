"""Knowledge distillation as hooks on a stock student."""
