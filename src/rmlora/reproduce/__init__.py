"""The tables and figures of the RM-LoRA paper as studies, with the published numbers beside what comes out."""
