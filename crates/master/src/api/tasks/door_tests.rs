//! What the door of the original takes and refuses, without a master behind it.
use super::*;
