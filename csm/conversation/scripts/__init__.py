"""How scripts are written where people find them: a module for each family of formats, `forms` to tell them apart."""
