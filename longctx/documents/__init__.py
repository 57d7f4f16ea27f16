"""Files become documents here, safely, with exact offsets and pages. This room knows no model."""
