//! The value of a rule map: which ports of a prefix are captured.

/// The maximum number of port ranges of a prefix after all rules are applied. Each costs a comparison in the kernel.
pub const MAX_RANGES: usize = 16;

/// A [`PortSet`] as the map stores it: `[first, last]` pairs in host byte order.
pub type RawPorts = [[u16; 2]; MAX_RANGES];

/// The captured ports of one prefix: ascending ranges that neither overlap nor touch, then unused slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PortSet(RawPorts);

/// A range without ports, so that `contains` needs no count.
const UNUSED: [u16; 2] = [1, 0];

impl PortSet {
    /// No port.
    pub const NONE: Self = Self([UNUSED; MAX_RANGES]);

    /// Returns whether connections to `port` are captured.
    #[inline(always)]
    pub fn contains(&self, port: u16) -> bool {
        for [first, last] in self.0 {
            if first > last {
                return false;
            }
            if first <= port && port <= last {
                return true;
            }
        }
        false
    }

    /// Returns whether connections to every port are captured.
    #[inline(always)]
    pub fn is_all(&self) -> bool {
        let [[first, last], ..] = self.0;
        first == 0 && last == u16::MAX
    }

    /// Makes a set from the ascending, disjoint ranges `first..=last`, and joins ranges that touch. `None` if more than
    /// [`MAX_RANGES`] remain.
    pub fn from_ascending(ranges: impl IntoIterator<Item = (u16, u16)>) -> Option<Self> {
        let mut set = [UNUSED; MAX_RANGES];
        let mut used = 0_usize;
        for (first, last) in ranges {
            match used.checked_sub(1).and_then(|previous| set.get_mut(previous)) {
                Some([_, end]) if u32::from(*end) + 1 == u32::from(first) => *end = last,
                _ => {
                    *set.get_mut(used)? = [first, last];
                    used += 1;
                }
            }
        }
        Some(Self(set))
    }

    /// Converts from the map's value.
    pub const fn from_raw(raw: RawPorts) -> Self {
        Self(raw)
    }

    /// Converts to the map's value.
    pub const fn raw(self) -> RawPorts {
        self.0
    }
}

/// Writes `all ports`, `no port`, or the ranges.
impl core::fmt::Display for PortSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_all() {
            return f.write_str("all ports");
        }
        let used = self.0.iter().take_while(|[first, last]| first <= last);
        let mut separator = "ports ";
        for [first, last] in used {
            write!(f, "{separator}{first}-{last}")?;
            separator = ",";
        }
        if separator == "," { Ok(()) } else { f.write_str("no port") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_touching_ranges_and_refuses_too_many() {
        type Ranges = &'static [(u16, u16)];
        type Answers = &'static [(u16, bool)];
        let cases: &[(Ranges, Answers)] = &[
            (&[], &[(0, false), (1, false), (65535, false)]),
            (&[(0, 65535)], &[(0, true), (65535, true)]),
            (&[(0, 0), (1, 9), (11, 65535)], &[(0, true), (9, true), (10, false), (11, true)]),
        ];
        for (ranges, ports) in cases {
            let set = PortSet::from_ascending(ranges.iter().copied()).unwrap();
            for (port, want) in *ports {
                assert_eq!(set.contains(*port), *want, "{ranges:?} {port}");
            }
        }
        let every_other = |count: u16| PortSet::from_ascending((0..count).map(|i| (i * 2, i * 2)));
        assert!(every_other(MAX_RANGES as u16).is_some());
        assert_eq!(every_other(MAX_RANGES as u16 + 1), None);
    }
}
