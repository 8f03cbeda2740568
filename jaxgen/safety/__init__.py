"""Rules for texts: what may not be written, said or asked, and measures of bias."""
