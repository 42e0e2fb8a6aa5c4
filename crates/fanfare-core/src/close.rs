//! The table of close codes, with the reconnect policy of each.

/// The reconnect policy of a client after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// Do not reconnect: another attempt would end in the same way.
    Never,
    /// Reconnect immediately with the cursor. The pause grows after each failure.
    Now,
    /// Reconnect after some seconds, with random spread.
    Later,
    /// Reconnect with a new token.
    WithNewToken,
}

macro_rules! close_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $reconnect:ident;)+) => {
        /// A close code (RFC 6455 section 7.4). Codes from 4000 on are specific to fanfare.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum CloseCode { $($(#[doc = $doc])+ $name = $code,)+ }

        impl CloseCode {
            /// All codes that a hub sends, in ascending order.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the reconnect policy of a client that is closed with this code.
            pub const fn reconnect(self) -> Reconnect {
                match self { $(Self::$name => Reconnect::$reconnect),+ }
            }

            /// Returns the meaning of the code as a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

close_codes! {
    /// The client requested the close.
    Normal = 1000, Never;
    /// The hub shuts down, or the browser left the page.
    GoingAway = 1001, Later;
    /// The client violated the WebSocket protocol.
    Protocol = 1002, Never;
    /// The client sent a binary message. All messages are JSON in text messages.
    Unsupported = 1003, Never;
    /// The client sent text that is not UTF-8.
    InvalidText = 1007, Never;
    /// The token was rejected. The reason begins with the error code.
    Policy = 1008, WithNewToken;
    /// A frame or message is too large.
    TooBig = 1009, Never;
    /// The hub failed.
    Internal = 1011, Later;
    /// The hub is being replaced. The client reconnects after the time in `goaway`, or immediately without a `goaway`.
    Restart = 1012, Now;
    /// A limit on connections was reached, or a dependency is unavailable. The reason begins with the setting or code.
    TryAgainLater = 1013, Later;
    /// The client was silent for longer than the heartbeat timeout.
    HeartbeatTimeout = 4000, Now;
    /// A newer socket took over the `connection_id`.
    Replaced = 4001, Never;
    /// The client sent too many messages a second.
    TooManyMessages = 4002, Later;
    /// An operator or the application closed the connection.
    Disconnected = 4003, Never;
}

impl CloseCode {
    /// The close reason of [`CloseCode::Replaced`].
    pub const REPLACED: &str = "a newer socket took over this connection_id";

    /// The close reason of [`CloseCode::Restart`] if two nodes have a connection with the same connection ID and it is
    /// unknown which one is newer.
    pub const UNDECIDED: &str =
        "another node also has a connection with this connection_id, and it is unknown which one is newer: reconnect";

    /// The code and reason for a connection that another node has too. `sure`: the other one is known to be newer. Otherwise
    /// the client must be able to reconnect, because this connection may be the one in use.
    pub const fn of_duplicate(sure: bool) -> (Self, &'static str) {
        if sure { (Self::Replaced, Self::REPLACED) } else { (Self::Restart, Self::UNDECIDED) }
    }

    /// Returns the code as it is sent in a close frame.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_only_codes_that_may_be_sent() {
        assert!(CloseCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        for code in CloseCode::ALL {
            let n = code.number();
            assert!((1000..=1014).contains(&n) && !(1004..=1006).contains(&n) || (4000..5000).contains(&n), "{n}");
            assert!(code.meaning().ends_with('.'), "{n}");
        }
    }
}
