//! A share of a number of hosts: a number, a percentage, or all of them. Under model::task. It rounds as its user says: a batch up, a tolerance down.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of hosts, told in one of three ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of them.
    All,
    /// So many.
    Count(u32),
    /// So many of a hundred; 0 to 100.
    Percent(u32),
}

/// A text that is no share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is a number of hosts, a share from 0% to 100%, or all")]
pub struct NoShare;

impl Share {
    /// Of so many hosts, rounded up.
    #[must_use]
    pub fn rounded_up(self, hosts: usize) -> usize {
        match self {
            Self::Percent(percent) => hosts.saturating_mul(percent as usize).div_ceil(100),
            _ => self.rounded_down(hosts),
        }
    }

    /// Of so many hosts, rounded down.
    #[must_use]
    pub fn rounded_down(self, hosts: usize) -> usize {
        match self {
            Self::All => hosts,
            Self::Count(count) => count as usize,
            Self::Percent(percent) => hosts.saturating_mul(percent as usize) / 100,
        }
    }
}

impl FromStr for Share {
    type Err = NoShare;

    fn from_str(text: &str) -> Result<Self, NoShare> {
        if text == "all" {
            return Ok(Self::All);
        }
        let (number, is_percent) = text.strip_suffix('%').map_or((text, false), |number| (number, true));
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NoShare);
        }
        let number = number.parse().map_err(|_| NoShare)?;
        match is_percent {
            true if number > 100 => Err(NoShare),
            true => Ok(Self::Percent(number)),
            false => Ok(Self::Count(number)),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Count(count) => count.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| de::Error::custom(format!("{text:?} {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_rounds_as_its_user_says() {
        // text; of 3 hosts rounded up, and down
        for (text, up, down) in [("all", 3, 3), ("2", 2, 2), ("0", 0, 0), ("10%", 1, 0), ("34%", 2, 1), ("100%", 3, 3), ("0%", 0, 0)] {
            let share: Share = text.parse().expect(text);
            assert_eq!((share.rounded_up(3), share.rounded_down(3), share.to_string()), (up, down, text.to_owned()));
        }
        for text in ["", "%", "-1", "+1", "101%", "1.5", "10 %", "All", "4294967296"] {
            assert_eq!(text.parse::<Share>(), Err(NoShare), "{text}");
        }
    }
}
